// How the program tells a failure, and the exit code that goes with it.
#pragma once
#include <exception>

#include "base/error.h"

namespace tessera::cli {

inline constexpr int kFailed = 1;
inline constexpr int kWrongUse = 2;
inline constexpr int kDiverged = 3;  // a run stopped by train.on_divergence: the same again would do the same
inline constexpr int kLeft = 75;     // a run that was asked to leave; the same command goes on (EX_TEMPFAIL)

// Any exception as an Error: those of the library and of the standard library get a mend line.
[[nodiscard]] Error as_error(const std::exception_ptr& exception);

// On standard error; returns the exit code.
int print_error(const Error& error);

}  // namespace tessera::cli
