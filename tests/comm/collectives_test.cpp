// Every collective on every backend and number of ranks: results with closed forms, and sums whose order of
// additions is written out here by hand and compared bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "comm/backends.h"

namespace tessera::comm {
namespace {

constexpr std::int64_t kSizes[] = {0, 1, 5, 64, 1000, 100003};

std::int64_t chunk_length(std::int64_t n, std::int32_t size) {
  return (n + size - 1) / size;
}

// Element i in the ring order: the rank after the owner of its chunk starts, the owner ends.
template <class T>
std::vector<T> ring_sum(std::int64_t n, std::int32_t size) {
  std::vector<std::vector<T>> in;
  for (std::int32_t r = 0; r < size; ++r) in.push_back(random_vector<T>(n, r));
  std::vector<T> out(n);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto owner = static_cast<std::int32_t>(i / chunk_length(n, size));
    T sum = in[(owner + 1) % size][i];
    for (std::int32_t k = 2; k <= size; ++k) sum = sum + in[(owner + k) % size][i];
    out[i] = sum;
  }
  return out;
}

template <class T>
std::vector<T> rank_order_sum(std::int64_t n, std::int32_t size) {
  std::vector<T> out = random_vector<T>(n, 0);
  for (std::int32_t r = 1; r < size; ++r) {
    const std::vector<T> in = random_vector<T>(n, r);
    for (std::int64_t i = 0; i < n; ++i) out[i] = out[i] + in[i];
  }
  return out;
}

// Rows of rank r in the *_v tests: some ranks have none.
std::vector<std::int64_t> uneven_rows(std::int32_t size) {
  std::vector<std::int64_t> rows;
  for (std::int32_t r = 0; r < size; ++r) rows.push_back(r % 3 == 1 ? 0 : 2 + 3 * r);
  return rows;
}
std::int64_t sum_of(std::span<const std::int64_t> rows) {
  std::int64_t sum = 0;
  for (const std::int64_t r : rows) sum += r;
  return sum;
}

class Collectives : public OnEveryBackend {
 protected:
  template <class T>
  void all_reduce_sums() {
    for (const std::int64_t n : kSizes) {
      on_ranks([&](Communicator& c) {
        std::vector<T> x(n);
        std::vector<T> want(n);
        for (std::int64_t i = 0; i < n; ++i) {
          x[i] = static_cast<T>(i % 97 + 1000 * c.rank());
          want[i] = static_cast<T>(c.size() * (i % 97) + 500 * c.size() * (c.size() - 1));
        }
        c.all_reduce(tensor_of(x));
        EXPECT_EQ(difference(x, want), "") << n << " elements, rank " << c.rank();
      });
    }
  }
  template <class T>
  void adds_in_ring_order(std::int64_t n) {
    const std::vector<T> want = ring_sum<T>(n, size());
    on_ranks([&](Communicator& c) {
      for (int repeat = 0; repeat < 3; ++repeat) {
        std::vector<T> x = random_vector<T>(n, c.rank());
        c.all_reduce(tensor_of(x));
        EXPECT_EQ(difference(x, want), "") << n << " elements, rank " << c.rank() << ", run " << repeat;
      }
    });
  }
};

TEST_P(Collectives, AllReduceGivesTheSumOnEveryRankInF32) {
  all_reduce_sums<float>();
}
TEST_P(Collectives, AllReduceGivesTheSumOnEveryRankInF64) {
  all_reduce_sums<double>();
}

TEST_P(Collectives, AllReduceAddsInTheDocumentedRingOrderBitForBit) {
  // Inside the slots, gathered, and as a ring of several segments with a ragged end.
  for (const std::int64_t n : {std::int64_t{7}, std::int64_t{1000}, std::int64_t{100003}})
    adds_in_ring_order<float>(n);
  adds_in_ring_order<double>(5003);
}
TEST_P(Collectives, LargeAllReduceAddsInTheDocumentedRingOrderBitForBit) {
  adds_in_ring_order<float>(1000003);
}

TEST_P(Collectives, AllReduceDirectAddsInRankOrderBitForBit) {
  for (const std::int64_t n : {0, 5, 1000, 20011}) {
    const std::vector<float> want = rank_order_sum<float>(n, size());
    on_ranks([&](Communicator& c) {
      std::vector<float> x = random_vector<float>(n, c.rank());
      c.all_reduce_direct(tensor_of(x), Op::sum);
      EXPECT_EQ(difference(x, want), "") << n << " elements, rank " << c.rank();
    });
  }
}

TEST_P(Collectives, AllReduceDirectSumsAndMaximisesWholeNumbers) {
  on_ranks([&](Communicator& c) {
    for (const std::int64_t n : {std::int64_t{3}, std::int64_t{5000}}) {
      std::vector<std::int64_t> a(n);
      std::vector<std::int32_t> b(n);
      for (std::int64_t i = 0; i < n; ++i) {
        a[i] = (std::int64_t{1} << 60) / c.size() + i;
        b[i] = static_cast<std::int32_t>((i + c.rank()) % c.size()) - 100;
      }
      const std::int64_t first = a[0];
      c.all_reduce_direct(tensor_of(a), Op::sum);
      c.all_reduce_direct(tensor_of(b), Op::max);
      for (std::int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(a[i], (first + i) * c.size());
        ASSERT_EQ(b[i], c.size() - 1 - 100);
      }
    }
  });
}

TEST_P(Collectives, MaximumPassesNaNOn) {
  on_ranks([&](Communicator& c) {
    std::vector<double> x = {static_cast<double>(-c.rank()), 1.0};
    if (c.rank() == c.size() / 2) x[1] = std::numeric_limits<double>::quiet_NaN();
    c.all_reduce_direct(tensor_of(x), Op::max);
    EXPECT_EQ(x[0], 0.0);
    EXPECT_TRUE(std::isnan(x[1]));
  });
}

TEST_P(Collectives, ReduceScatterAddsInRingOrderAndMayWriteIntoItsOwnPart) {
  for (const std::int64_t part : {0, 1, 13, 5000}) {
    const std::vector<float> whole = ring_sum<float>(part * size(), size());
    on_ranks([&](Communicator& c) {
      const std::vector<float> want(whole.begin() + c.rank() * part, whole.begin() + (c.rank() + 1) * part);
      std::vector<float> in = random_vector<float>(part * c.size(), c.rank());
      std::vector<float> out(part, NAN);
      c.reduce_scatter(tensor_of(out), tensor_of(in));
      EXPECT_EQ(difference(out, want), "") << part << " elements each, rank " << c.rank();

      in = random_vector<float>(part * c.size(), c.rank());
      const Tensor all = tensor_of(in);
      c.reduce_scatter(all.narrow_rows(c.rank() * part, part), all);
      const std::vector<float> own(in.begin() + c.rank() * part, in.begin() + (c.rank() + 1) * part);
      EXPECT_EQ(difference(own, want), "") << "in place, rank " << c.rank();
    });
  }
}

TEST_P(Collectives, AllGatherPlacesEveryRankAlsoInPlaceAndForEveryDtype) {
  for (const std::int64_t part : {0, 1, 1000}) {
    on_ranks([&](Communicator& c) {
      for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32, DType::u8}) {
        const std::int64_t bytes = part * tensor::size_of(dtype);
        std::vector<std::uint8_t> in(bytes, static_cast<std::uint8_t>(c.rank() + 1));
        std::vector<std::uint8_t> out(bytes * c.size(), 0xff);
        std::vector<std::uint8_t> want;
        for (std::int32_t r = 0; r < c.size(); ++r) want.insert(want.end(), bytes, r + 1);
        const Tensor whole(out.data(), dtype, {part * c.size()});
        c.all_gather(whole, Tensor(in.data(), dtype, {part}));
        EXPECT_EQ(difference(out, want), "") << tensor::name(dtype);

        std::fill(out.begin(), out.end(), 0xff);
        std::fill_n(out.begin() + c.rank() * bytes, bytes, c.rank() + 1);
        c.all_gather(whole, whole.narrow_rows(c.rank() * part, part));
        EXPECT_EQ(difference(out, want), "") << "in place, " << tensor::name(dtype);
      }
    });
  }
}

TEST_P(Collectives, AllGatherVPlacesUnevenRowsIncludingNone) {
  const std::vector<std::int64_t> rows = uneven_rows(size());
  on_ranks([&](Communicator& c) {
    constexpr std::int64_t kColumns = 3;
    std::vector<double> in(rows[c.rank()] * kColumns, c.rank() + 0.5);
    std::vector<double> out(sum_of(rows) * kColumns, NAN);
    std::vector<double> want;
    for (std::int32_t r = 0; r < c.size(); ++r) want.insert(want.end(), rows[r] * kColumns, r + 0.5);
    c.all_gather_v(rows_of(out, kColumns), rows_of(in, kColumns), rows);
    EXPECT_EQ(difference(out, want), "");
    EXPECT_EQ(c.bytes_sent().value, (c.size() - 1) * rows[c.rank()] * kColumns * 8);
  });
}

TEST_P(Collectives, ReduceScatterVAddsUnevenRowsInRankOrder) {
  const std::vector<std::int64_t> rows = uneven_rows(size());
  constexpr std::int64_t kColumns = 5;
  const std::vector<float> whole = rank_order_sum<float>(sum_of(rows) * kColumns, size());
  on_ranks([&](Communicator& c) {
    std::vector<float> in = random_vector<float>(sum_of(rows) * kColumns, c.rank());
    std::vector<float> out(rows[c.rank()] * kColumns, NAN);
    c.reduce_scatter_v(rows_of(out, kColumns), rows_of(in, kColumns), rows);
    const auto begin = whole.begin() + sum_of(std::span(rows).first(c.rank())) * kColumns;
    EXPECT_EQ(difference(out, std::vector<float>(begin, begin + std::ssize(out))), "");
    EXPECT_EQ(c.bytes_sent().value, (sum_of(rows) - rows[c.rank()]) * kColumns * 4);
  });
}

TEST_P(Collectives, AllToAllVMovesEachBlockToItsRankIncludingEmptyOnes) {
  const auto count = [](std::int32_t from, std::int32_t to) -> std::int64_t {
    return (from + 2 * to) % 4 == 0 ? 0 : (from * 5 + to * 3) % 7;
  };
  on_ranks([&](Communicator& c) {
    constexpr std::int64_t kColumns = 4;
    std::vector<std::int64_t> send;
    std::vector<std::int64_t> recv;
    std::vector<float> in;
    std::vector<float> want;
    for (std::int32_t r = 0; r < c.size(); ++r) {
      send.push_back(count(c.rank(), r));
      recv.push_back(count(r, c.rank()));
      in.insert(in.end(), send.back() * kColumns, 100.0F * c.rank() + r);
      want.insert(want.end(), recv.back() * kColumns, 100.0F * r + c.rank());
    }
    std::vector<float> out(want.size(), NAN);
    c.all_to_all_v(rows_of(out, kColumns), recv, rows_of(in, kColumns), send);
    EXPECT_EQ(difference(out, want), "");
    EXPECT_EQ(c.bytes_sent().value, (sum_of(send) - send[c.rank()]) * kColumns * 4);
  });
}

TEST_P(Collectives, AllToAllVWorksWhenNobodyHasRows) {
  on_ranks([&](Communicator& c) {
    const std::vector<std::int64_t> none(c.size(), 0);
    c.all_to_all_v(Tensor(nullptr, DType::f32, {0, 8}), none, Tensor(nullptr, DType::f32, {0, 8}), none);
    EXPECT_EQ(c.bytes_sent().value, 0);
  });
}

TEST_P(Collectives, BroadcastGivesTheRootsTensorToAll) {
  on_ranks([&](Communicator& c) {
    for (std::int32_t root = 0; root < c.size(); ++root) {
      std::vector<std::int32_t> x(777, c.rank());
      c.broadcast(tensor_of(x), root);
      EXPECT_EQ(difference(x, std::vector<std::int32_t>(777, root)), "");
    }
    EXPECT_EQ(c.bytes_sent().value, (c.size() - 1) * 777 * 4);
  });
}

TEST_P(Collectives, NobodyPassesABarrierBeforeAllHaveReachedIt) {
  SharedCount arrived{};
  on_ranks([&](Communicator& c) {
    for (std::int32_t round = 1; round <= 200; ++round) {
      arrived.fetch_add(1);
      c.barrier();
      EXPECT_EQ(arrived.load(), round * c.size());
      c.barrier();
    }
  });
}

TEST_P(Collectives, BytesSentAreTheClosedForms) {
  on_ranks([&](Communicator& c) {
    const std::int64_t n = c.size();
    const auto sent = [&](Call call) {
      return c.counters()[static_cast<std::size_t>(call)].bytes_sent.value;
    };
    // N divides the elements: 2 (N - 1) / N S.
    std::vector<double> x(840);
    c.all_reduce(tensor_of(x));
    EXPECT_EQ(sent(Call::all_reduce), 2 * (n - 1) * 840 * 8 / n);
    // It does not: everything twice but the chunk finished here and the successor's.
    c.reset_counters();
    std::vector<float> y(100003);
    c.all_reduce(tensor_of(y));
    const std::int64_t length = chunk_length(100003, c.size());
    const auto chunk = [&](std::int64_t k) {
      return std::min<std::int64_t>(100003, (k + 1) * length) - std::min<std::int64_t>(100003, k * length);
    };
    const std::int64_t want = 2 * 100003 - chunk(c.rank()) - chunk((c.rank() + 1) % n);
    EXPECT_EQ(sent(Call::all_reduce), n == 1 ? 0 : want * 4);

    std::vector<double> part(840 / n);
    c.reduce_scatter(tensor_of(part), tensor_of(x));
    c.all_gather(tensor_of(x), tensor_of(part));
    EXPECT_EQ(sent(Call::reduce_scatter), (n - 1) * 840 * 8 / n);
    EXPECT_EQ(sent(Call::all_gather), (n - 1) * 840 * 8 / n);
    c.all_reduce_direct(tensor_of(part), Op::sum);
    EXPECT_EQ(sent(Call::all_reduce_direct), (n - 1) * 840 / n * 8);
    EXPECT_EQ(c.counters()[static_cast<std::size_t>(Call::all_reduce)].calls, 1);
    EXPECT_GT(c.wall_ns(), 0);
    c.reset_counters();
    EXPECT_EQ(c.bytes_sent().value, 0);
    EXPECT_EQ(c.wall_ns(), 0);
  });
}

TEST_P(Collectives, TheSumOfBytesOverAllRanksIsTwiceNMinusOneTensors) {
  SharedCount sum{};
  constexpr std::int64_t kElements = 1001;
  on_ranks([&](Communicator& c) {
    std::vector<float> x(kElements);
    c.all_reduce(tensor_of(x));
    sum += c.bytes_sent().value;
  });
  EXPECT_EQ(sum.load(), 2 * (size() - 1) * kElements * 4);
}

TEST_P(Collectives, TenThousandSmallCallsStayInStep) {
  const std::int32_t rounds = size() <= 4 ? 2500 : 500;
  on_ranks([&](Communicator& c) {
    std::vector<double> x(3);
    std::vector<float> y(200);
    std::vector<std::int64_t> z(1);
    std::vector<std::int64_t> gathered(c.size());
    for (std::int32_t i = 0; i < rounds; ++i) {
      std::fill(x.begin(), x.end(), i);
      c.all_reduce(tensor_of(x));
      ASSERT_EQ(x[1], static_cast<double>(i) * c.size());
      std::fill(y.begin(), y.end(), static_cast<float>(c.rank()));
      c.all_reduce(tensor_of(y));
      ASSERT_EQ(y[199], c.size() * (c.size() - 1) / 2);
      z[0] = c.rank() * 10 + i;
      c.all_gather(tensor_of(gathered), tensor_of(z));
      ASSERT_EQ(gathered.back(), (c.size() - 1) * 10 + i);
      c.all_reduce_direct(tensor_of(z), Op::max);
      ASSERT_EQ(z[0], (c.size() - 1) * 10 + i);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, Collectives, ::testing::ValuesIn(settings()), setting_name);

}  // namespace
}  // namespace tessera::comm
