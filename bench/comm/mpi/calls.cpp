// MPI's own all-reduce and all-to-all under mpirun: mpirun -n 4 bench_comm_mpi BYTES. Prints the median
// microseconds of each, as mpi_bench.cpp reads them. As there, each rank writes its tensor before each call.
#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int kRounds = 60;

template <class F>
double median_us(std::vector<float>& x, const F& call) {
  std::vector<double> us;
  for (int i = 0; i < kRounds; ++i) {
    std::fill(x.begin(), x.end(), 1.0F);
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = MPI_Wtime();
    call();
    MPI_Barrier(MPI_COMM_WORLD);
    us.push_back((MPI_Wtime() - start) * 1e6);
  }
  std::nth_element(us.begin(), us.begin() + kRounds / 2, us.end());
  return us[kRounds / 2];
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  int size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const long bytes = argc > 1 ? std::atol(argv[1]) : 1 << 20;
  const int n = static_cast<int>(bytes / 4 / size) * size;
  std::vector<float> in(static_cast<std::size_t>(n));
  std::vector<float> out(static_cast<std::size_t>(n));
  const double reduce =
      median_us(in, [&] { MPI_Allreduce(MPI_IN_PLACE, in.data(), n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); });
  const double exchange = median_us(in, [&] {
    MPI_Alltoall(in.data(), n / size, MPI_FLOAT, out.data(), n / size, MPI_FLOAT, MPI_COMM_WORLD);
  });
  if (rank == 0) std::printf("%.3f %.3f\n", reduce, exchange);
  MPI_Finalize();
  return 0;
}
