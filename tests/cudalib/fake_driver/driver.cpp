// libcuda.so.1 of tests that have no GPU: every name is there and says success, cuInit says that there is no
// device, and what loads a module or finds a function in it hands out a handle that nobody can use.
#include <dlfcn.h>

namespace {
constexpr int kNoDevice = 100;
constexpr int kVersion = 13000;
int some_object = 0;
int give_handle(void** handle) {
  if (handle != nullptr) *handle = &some_object;
  return 0;
}
}  // namespace

#define DRIVER_NAME(name) \
  int name() {            \
    return 0;             \
  }

extern "C" {
#include "names.inc"

int cuInit(unsigned) {
  return kNoDevice;
}
int cuDriverGetVersion(int* version) {
  *version = kVersion;
  return 0;
}
int cuLibraryLoadData(void** library, ...) {
  return give_handle(library);
}
int cuLibraryGetKernel(void** kernel, ...) {
  return give_handle(kernel);
}
int cuLibraryGetModule(void** module, ...) {
  return give_handle(module);
}
int cuKernelGetFunction(void** function, ...) {
  return give_handle(function);
}
int cuModuleLoadData(void** module, ...) {
  return give_handle(module);
}
int cuModuleLoadDataEx(void** module, ...) {
  return give_handle(module);
}
int cuModuleGetFunction(void** function, ...) {
  return give_handle(function);
}
int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* found) {
  void* address = dlsym(dlopen("libcuda.so.1", RTLD_LAZY), name);
  if (function != nullptr) *function = address;
  if (found != nullptr) *found = address != nullptr ? 0 : 1;
  return address != nullptr ? 0 : 500;
}
int cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
}
