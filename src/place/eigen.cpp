#include "place/eigen.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/error.h"
#include "place/index.h"

namespace tessera::place {
namespace {

struct Tridiagonal {
  std::vector<double> diagonal, beside;  // beside[i] couples i and i + 1; the last is 0
};

// Reflections from the last row upwards: each leaves one entry beside the diagonal.
Tridiagonal reduce(std::vector<double>& a, std::int32_t n) {
  const auto m = [&](std::int32_t i, std::int32_t j) -> double& {
    return at(a, static_cast<std::int64_t>(i) * n + j);
  };
  Tridiagonal t{std::vector<double>(size_of(n)), std::vector<double>(size_of(n), 0.0)};
  std::vector<double> v(size_of(n)), p(size_of(n));
  for (std::int32_t k = n - 1; k >= 2; --k) {
    double norm = 0.0;
    for (std::int32_t j = 0; j < k; ++j) norm += m(k, j) * m(k, j);
    norm = std::sqrt(norm);
    const double sign = m(k, k - 1) > 0.0 ? -norm : norm;
    at(t.beside, k - 1) = sign;
    double length = 0.0;
    for (std::int32_t j = 0; j < k; ++j) {
      at(v, j) = m(k, j) - (j == k - 1 ? sign : 0.0);
      length += at(v, j) * at(v, j);
    }
    if (!(length > 0.0)) continue;
    // A := H A H with H = 1 - 2 v v' / length, on the rows and columns before k.
    double dot = 0.0;
    for (std::int32_t i = 0; i < k; ++i) {
      double sum = 0.0;
      for (std::int32_t j = 0; j < k; ++j) sum += m(i, j) * at(v, j);
      at(p, i) = 2.0 * sum / length;
      dot += at(p, i) * at(v, i);
    }
    for (std::int32_t i = 0; i < k; ++i) at(p, i) -= dot / length * at(v, i);
    for (std::int32_t i = 0; i < k; ++i) {
      for (std::int32_t j = 0; j < k; ++j) m(i, j) -= at(v, i) * at(p, j) + at(p, i) * at(v, j);
    }
  }
  if (n > 1) t.beside[0] = m(1, 0);
  for (std::int32_t i = 0; i < n; ++i) at(t.diagonal, i) = m(i, i);
  return t;
}

// One implicit shifted QL step on the block l .. end.
void ql_step(Tridiagonal& t, std::int32_t l, std::int32_t end) {
  std::vector<double>&d = t.diagonal, &e = t.beside;
  double g = (at(d, l + 1) - at(d, l)) / (2.0 * at(e, l));
  double r = std::hypot(g, 1.0);
  g = at(d, end) - at(d, l) + at(e, l) / (g + (g < 0.0 ? -r : r));
  double s = 1.0, c = 1.0, p = 0.0;
  for (std::int32_t i = end - 1; i >= l; --i) {
    const double f = s * at(e, i), b = c * at(e, i);
    r = std::hypot(f, g);
    at(e, i + 1) = r;
    if (r == 0.0) {  // the block falls apart here
      at(d, i + 1) -= p;
      at(e, end) = 0.0;
      return;
    }
    s = f / r;
    c = g / r;
    g = at(d, i + 1) - p;
    r = (at(d, i) - g) * s + 2.0 * c * b;
    p = s * r;
    at(d, i + 1) = g + p;
    g = c * r - b;
  }
  at(d, l) -= p;
  at(e, l) = g;
  at(e, end) = 0.0;
}

}  // namespace

std::vector<double> eigenvalues(std::vector<double> matrix, std::int32_t n) {
  Tridiagonal t = reduce(matrix, n);
  for (std::int32_t l = 0; l < n; ++l) {
    for (std::int32_t step = 0;; ++step) {
      std::int32_t end = l;
      while (end + 1 < n) {
        const double size = std::abs(at(t.diagonal, end)) + std::abs(at(t.diagonal, end + 1));
        if (std::abs(at(t.beside, end)) <= 1e-15 * size) break;
        ++end;
      }
      if (end == l) break;
      TESSERA_CHECK(step < 200, "QL steps do not converge");
      ql_step(t, l, end);
    }
  }
  std::sort(t.diagonal.begin(), t.diagonal.end(), std::greater<>());
  return t.diagonal;
}

}  // namespace tessera::place
