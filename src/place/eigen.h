// All eigenvalues of a symmetric matrix: Householder to three diagonals, then the QL steps with implicit
// shifts (Golub and Van Loan, Matrix Computations, section 8.3). Values only, O(n^3). Inside of this room.
#pragma once
#include <cstdint>
#include <vector>

namespace tessera::place {

// matrix [n, n], row-major, symmetric. Descending. Good to about 1e-12 of the largest.
[[nodiscard]] std::vector<double> eigenvalues(std::vector<double> matrix, std::int32_t n);

}  // namespace tessera::place
