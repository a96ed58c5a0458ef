// gated_delta_net against a double-precision reading of its header, on every target and variant;
// bit for bit where the header promises bits: cuts into steps, the rest of the batch, targets.
#include "tenon/ops/gated_delta_net/gated_delta_net.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tenon/ops/fp8_quant/fp8_quant.h"
#include "tests/support/delta_net_calls.h"

namespace tenon::gated_delta_net {
namespace {

using namespace test;

constexpr double kFloatUlp = 0x1p-24;  // unit roundoffs
constexpr double kHalfUlp = 0x1p-8;    // of bf16
constexpr double kSplitUlp = 0x1p-16;  // of a product of floats in two parts of bf16 each

double rounded(double value) { return to_float(to_bf16(static_cast<float>(value))); }
double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// --- the oracle

// A sequence in double, token after token. `u` comes from the op once it has been checked, so that
// a tie that rounds the other way in the convolution does not hide in the tolerance of the rest.
struct Oracle {
  const Weights& weights;
  std::vector<std::vector<double>> history;  // the last three inputs, oldest first
  std::vector<double> state;                 // [v_heads, kD, kD]
  double largest_column = 0;  // max over time of ‖S_j‖ + |v_j|: scales fp32 errors
  int tokens = 0;
  bool chunked =
      false;  // the op's form, and the roundoff of its products, for the error bound only
  double roundoff = kFloatUlp;
  double largest_row = 0;  // max Σ_j |A[i,j]| of the chunked form
  struct Key {
    std::vector<double> k;
    double decay;
  };
  std::vector<std::vector<Key>> chunk;  // per v head, the keys of this chunk so far

  Oracle(const Weights& w, const States* states, int slot) : weights(w) {
    history.assign(3, std::vector<double>(at(w.conv_dim()), 0.0));
    state.assign(at(std::int64_t{w.value_dim()} * kD), 0.0);
    chunk.resize(at(w.v_heads));
    if (states == nullptr) return;
    for (int i = 0; i < 3; ++i)
      for (int c = 0; c < w.conv_dim(); ++c)
        history[at(i)][at(c)] = to_float(states->conv[kept_at(slot, i, c)]);
    for (std::size_t i = 0; i < state.size(); ++i)
      state[i] = states->state[at(slot) * state.size() + i];
  }

  // Where input i of the history lies: position tokens − 3 + i in its row.
  std::size_t kept_at(int slot, int i, int c) const {
    const int row = (tokens + kKeptInputs - 3 + i) % kKeptInputs;
    return at((std::int64_t{slot} * kKeptInputs + row) * weights.conv_dim() + c);
  }

  // u must be a rounding of the exact value, or of one as near as fp32 gets: four products and the
  // SiLU's exponential.
  void expect_u(const bf16* input, const bf16* u) {
    for (int c = 0; c < weights.conv_dim(); ++c) {
      double sum = 0, magnitude = 0;
      for (int tap = 0; tap < kTaps; ++tap) {
        const double x = tap < 3 ? history[at(tap)][at(c)] : to_float(input[c]);
        const double product = x * to_float(weights.conv[at(c * kTaps + tap)]);
        sum += product;
        magnitude += std::abs(product);
      }
      const double exact = sum * sigmoid(sum);
      const double slack =
          kFloatUlp * (4 * 1.1 * magnitude + 4 * std::abs(exact));  // |silu'| < 1.1
      const double found = to_float(u[c]);
      ASSERT_GE(found, std::min(rounded(exact - slack), rounded(exact + slack))) << "channel " << c;
      ASSERT_LE(found, std::max(rounded(exact - slack), rounded(exact + slack))) << "channel " << c;
    }
    history.erase(history.begin());
    history.emplace_back();
    for (int c = 0; c < weights.conv_dim(); ++c) history.back().push_back(to_float(input[c]));
  }

  // o of one token and v head, in double, and S moves on.
  std::vector<double> delta_rule(const bf16* u, double a, double b, int head) {
    const int k_head = head / (weights.v_heads / weights.k_heads);
    std::vector<double> q(kD), k(kD), o(kD, 0.0);
    double qq = 1e-6, kk = 1e-6;
    for (int i = 0; i < kD; ++i) {
      q[at(i)] = to_float(u[k_head * kD + i]);
      k[at(i)] = to_float(u[(weights.k_heads + k_head) * kD + i]);
      qq += q[at(i)] * q[at(i)];
      kk += k[at(i)] * k[at(i)];
    }
    for (double& each : q) each /= std::sqrt(qq) * std::sqrt(double{kD});
    for (double& each : k) each /= std::sqrt(kk);
    const double x = a + weights.dt_bias[at(head)];
    const double softplus = std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
    const double decay = std::exp(-std::exp(double{weights.a_log[at(head)]}) * softplus);
    measure_row(head, {k, decay}, sigmoid(b));
    double* s = &state[at(std::int64_t{head} * kD * kD)];
    for (int j = 0; j < kD; ++j) {
      const double v = to_float(u[(2 * weights.k_heads + head) * kD + j]);
      double m = 0, column = 0;
      for (int i = 0; i < kD; ++i) {
        column += s[i * kD + j] * s[i * kD + j];
        s[i * kD + j] *= decay;
        m += s[i * kD + j] * k[at(i)];
      }
      const double d = sigmoid(b) * (v - m);
      for (int i = 0; i < kD; ++i) {
        s[i * kD + j] += k[at(i)] * d;
        o[at(j)] += s[i * kD + j] * q[at(i)];
      }
      largest_column = std::max(largest_column, std::sqrt(column) + std::abs(v));
    }
    return o;
  }

  // Σ_j |A[i,j]| of the chunk's next row: how much of earlier values a chunked row subtracts.
  void measure_row(int head, Key key, double beta) {
    std::vector<Key>& keys = chunk[at(head)];
    double sum = 0, decay = key.decay;
    for (std::size_t j = keys.size(); j-- > 0;) {
      double product = 0;
      for (int i = 0; i < kD; ++i) product += key.k[at(i)] * keys[j].k[at(i)];
      sum += beta * std::abs(product) * decay;
      decay *= keys[j].decay;
    }
    largest_row = std::max(largest_row, sum);
    keys.push_back(std::move(key));
    if (keys.size() == 64) keys.clear();
  }
  void begin_step() {
    for (auto& keys : chunk) keys.clear();
  }

  // A column of S is moved by a map of norm <= 1 (decay, and 1 − beta·kkᵀ), so the fp32 errors of
  // the steps add up at most linearly. One step errs by no more than: a sum of kD terms (kD + 2),
  // the norms of q and k (kD / 32 + 8 halved, twice), gates and update (about 16), times ‖S_j‖ +
  // |v_j|. The chunked form adds sums over 64 rows: of A times values, for each row, and for S and
  // o.
  double state_error() const {
    const double recurrent = kD + 2 + kD / 32 + 8 + 16;
    const double rows = chunked ? (64 + 8) * (2 + largest_row) : 0;
    return (recurrent + rows) * roundoff * tokens * largest_column;
  }

  // One token: checks u, then the gated norm of every head.
  void expect_token(const Rows& rows, int t, const bf16* u, const bf16* out) {
    expect_u(&rows.qkv[at(std::int64_t{t} * weights.conv_dim())], u);
    ++tokens;
    for (int head = 0; head < weights.v_heads; ++head) {
      const auto gate = at(t * weights.v_heads + head);
      const auto o = delta_rule(u, to_float(rows.a[gate]), to_float(rows.b[gate]), head);
      SCOPED_TRACE("token " + std::to_string(t) + " v head " + std::to_string(head));
      expect_norm(o, &rows.z[at((std::int64_t{t} * weights.v_heads + head) * kD)], out + head * kD);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

  // o may have been rounded from anywhere within its error; the norm and the gate follow in fp32.
  void expect_norm(const std::vector<double>& o, const bf16* z, const bf16* out) const {
    const double error = state_error() / std::sqrt(double{kD});  // |q| = kD^-½
    double squares = 0, spread = 0;
    std::vector<double> width(kD);
    for (int i = 0; i < kD; ++i) {
      width[at(i)] = rounded(o[at(i)] + error) - rounded(o[at(i)] - error);
      squares += rounded(o[at(i)]) * rounded(o[at(i)]);
      spread += width[at(i)] * width[at(i)];
    }
    const double rstd = 1.0 / std::sqrt(squares / kD + 1e-6);
    const double relative = std::sqrt(spread / (squares + 1e-30)) + 32 * kFloatUlp;
    for (int i = 0; i < kD; ++i) {
      const double gate = to_float(z[i]) * sigmoid(to_float(z[i])) * weights.norm[at(i)] * rstd;
      const double exact = rounded(o[at(i)]) * gate;
      const double slack = width[at(i)] * std::abs(gate) + relative * std::abs(exact);
      ASSERT_NEAR(to_float(out[i]), exact, slack + kHalfUlp * (std::abs(exact) + slack))
          << "at " << i;
    }
  }

  void expect_states(const States& states, int slot) const {
    for (int i = 0; i < 3; ++i)
      for (int c = 0; c < weights.conv_dim(); ++c)
        ASSERT_EQ(history[at(i)][at(c)], to_float(states.conv[kept_at(slot, i, c)]))
            << "conv state " << i << " channel " << c;
    for (std::size_t i = 0; i < state.size(); ++i)
      ASSERT_NEAR(state[i], states.state[at(slot) * state.size() + i], state_error())
          << "state " << i;
  }
};

template <class T>
void expect_same_bits(const std::vector<T>& one, const std::vector<T>& other, const char* what) {
  ASSERT_EQ(one.size(), other.size());
  ASSERT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(T)), 0) << what << " differ";
}

// One sequence in one or several steps, against the oracle.
void expect_sequence(const Weights& weights, const Rows& rows, const std::vector<int>& cuts,
                     const StepOptions& options, bool fresh = true) {
  States states = make_states(weights, 2);
  Oracle oracle(weights, fresh ? nullptr : &states, 1);
  oracle.chunked = options.way.variant != "recurrent";
  if (options.way.variant == "tiles") oracle.roundoff = kSplitUlp;
  int begin = 0;
  for (int end : cuts) {
    oracle.begin_step();
    const std::vector<Part> parts{{&rows, begin, end, 1, fresh && begin == 0}};
    States before = states;
    StepResult got = run_step(weights, parts, states, options);
    if (end - begin == 1)  // u is not kept, but its bits are the same
      got.u = run_step(weights, parts, before, {{options.way.target, "recurrent"}}).u;
    for (int t = begin; t < end; ++t) {
      oracle.expect_token(rows, t, &got.u[at(std::int64_t{t - begin} * weights.conv_dim())],
                          &got.out[at(std::int64_t{t - begin} * weights.value_dim())]);
      ASSERT_FALSE(::testing::Test::HasFatalFailure()) << "token " << t;
    }
    begin = end;
  }
  oracle.expect_states(states, 1);
}

// --- tests

TEST(GatedDeltaNet, MatchesOracleAtAwkwardLengths) {
  const Weights weights = make_weights(1, 1);
  for_each_way(kOp, [&](const Way& way) {
    for (int tokens : test::sizes({1, 2, 3, 63, 64, 65, 130}, {1, 2, 67})) {
      if (test::is_slow(way.target) && tokens > 3 && tokens != 65) continue;  // emulation is slow
      SCOPED_TRACE("tokens " + std::to_string(tokens));
      expect_sequence(weights, make_rows(weights, tokens, 3), {tokens}, {way});
    }
  });
}

TEST(GatedDeltaNet, SharesKeyHeads) {
  for_each_way(kOp, [&](const Way& way) {
    for (auto [k_heads, v_heads] :
         test::sizes<std::pair<int, int>>({{2, 2}, {2, 4}, {1, 4}, {4, 8}}, {{2, 2}, {1, 4}})) {
      if (test::is_slow(way.target) && v_heads == 8) continue;
      SCOPED_TRACE("v heads " + std::to_string(v_heads));
      const Weights weights = make_weights(k_heads, v_heads);
      expect_sequence(weights, make_rows(weights, 5, 4), {5}, {way});
    }
  });
}

TEST(GatedDeltaNet, ContinuesFromStateAndReadsStridedRows) {
  const Weights weights = make_weights(1, 2);
  const Rows rows = make_rows(weights, 9, 5);
  for_each_way(kOp, [&](const Way& way) {
    expect_sequence(weights, rows, {9}, {way}, false);
    expect_sequence(weights, rows, {1, 2, 4, 9}, {way, 0, 24}, false);
  });
}

// So small that the eps inside the roots decide: zeros stay zeros.
TEST(GatedDeltaNet, TinyAndZeroInputsMeetTheirEps) {
  const Weights weights = make_weights(1, 1);
  for_each_way(kOp, [&](const Way& way) {
    for (float spread : {0.0f, 2e-4f, 2e-3f}) {
      SCOPED_TRACE("spread " + std::to_string(spread));
      expect_sequence(weights, make_rows(weights, 4, 12, spread), {4}, {way});
    }
  });
}

TEST(GatedDeltaNet, PromptsSplitAtOddPointsMatchOracle) {
  const Weights weights = make_weights(1, 2);
  const Rows rows = make_rows(weights, 140, 6);
  for_each_way(kOp, [&](const Way& way) {
    if (test::is_slow(way.target)) return;
    if (test::is_small_run()) {
      expect_sequence(weights, rows, {1, 3, 70}, {way});
    } else {
      expect_sequence(weights, rows, {1, 3, 70, 71, 140}, {way});
    }
  });
}

TEST(GatedDeltaNet, RecurrentGivesTheSameBitsHoweverSplitAndOnEveryTarget) {
  const Weights weights = make_weights(1, 2);
  const Rows rows = make_rows(weights, 20, 8);
  States whole = make_states(weights, 1);
  const StepResult expected = run_step(weights, {{&rows, 0, 20, 0, true}}, whole, {});
  for (Target target : test::usable_targets())
    for (const std::vector<int>& cuts :
         {std::vector<int>{20}, {1, 20}, {2, 5, 20}, {7, 8, 9, 17, 20}, {19, 20}}) {
      SCOPED_TRACE(test::to_string(target));
      States states = make_states(weights, 1);
      std::vector<bf16> out;
      int begin = 0;
      for (int end : cuts) {
        const auto got = run_step(weights, {{&rows, begin, end, 0, begin == 0}}, states,
                                  {{target, "recurrent"}});
        out.insert(out.end(), got.out.begin(), got.out.end());
        begin = end;
      }
      expect_same_bits(expected.out, out, "outputs");
      expect_same_bits(whole.state, states.state, "states");
      expect_same_bits(whole.conv, states.conv, "conv states");
    }
}

// A sequence in steps that end at the cuts: outputs of all tokens, and the states at the end.
struct Pieces {
  std::vector<bf16> out;
  States states;
};
Pieces run_pieces(const Weights& weights, const Rows& rows, std::vector<int> cuts, int end,
                  const StepOptions& options) {
  Pieces pieces{{}, make_states(weights, 1)};
  cuts.push_back(end);
  int begin = 0;
  for (const int to : cuts) {
    const Part part{&rows, begin, to, 0, begin == 0};
    const StepResult step = run_step(weights, {part}, pieces.states, options);
    pieces.out.insert(pieces.out.end(), step.out.begin(), step.out.end());
    begin = to;
  }
  return pieces;
}

// The cuts that the scheduler may make, on every target: the same bits, and the same on all.
TEST(GatedDeltaNet, ChunksGiveTheSameBitsCutAtTheirMultiplesAndOnEveryTarget) {
  const Weights weights = make_weights(1, 1);
  const Rows rows = make_rows(weights, 326, 41);
  for (const int end : test::sizes({130, 191, 256, 326}, {130})) {
    const Pieces portable = run_pieces(weights, rows, {}, end, {{Target::kCpu, "chunked"}});
    for (const Way& way : test::all_ways(kOp)) {
      const Target target = way.target;
      if (way.variant != "chunked" && way.variant != "tiles") continue;
      if (test::is_slow(target) && end != 130) continue;
      const StepOptions options{way};
      const Pieces reference =  // tensor cores have an order of their own
          way.variant == "chunked" ? portable : run_pieces(weights, rows, {}, end, options);
      for (const std::vector<int>& cuts :
           test::sizes<std::vector<int>>({{}, {64}, {128}, {64, 128}}, {{64, 128}})) {
        if (end - (cuts.empty() ? 0 : cuts.back()) < 2) continue;
        SCOPED_TRACE(test::to_string(way) + ", " + std::to_string(end) + " tokens in " +
                     std::to_string(cuts.size() + 1) + " pieces");
        const Pieces found = run_pieces(weights, rows, cuts, end, options);
        expect_same_bits(reference.out, found.out, "outputs");
        expect_same_bits(reference.states.state, found.states.state, "states");
        expect_same_bits(reference.states.conv, found.states.conv, "conv states");
      }
    }
  }
}

// A prompt's end shows in no token before it: the last chunk is short, and nothing is padded.
TEST(GatedDeltaNet, ATokenOfAPromptDependsOnEarlierOnesOnly) {
  const Weights weights = make_weights(1, 1);
  const Rows rows = make_rows(weights, 130, 42);
  for_each_way(kOp, [&](const Way& way) {
    const StepOptions options{way};
    const int whole = !test::is_slow(way.target) ? test::size(130, 70) : 70;
    const std::vector<bf16> longest = run_pieces(weights, rows, {}, whole, options).out;
    for (const int end : test::sizes({2, 33, 64, 65, 66}, {33, 65})) {
      std::vector<bf16> prefix = longest;
      prefix.resize(at(std::int64_t{end} * weights.value_dim()));
      expect_same_bits(prefix, run_pieces(weights, rows, {}, end, options).out, "outputs");
    }
  });
}

// What a decode step makes does not depend on the variant that its plan names.
TEST(GatedDeltaNet, OneTokenIsTheRecurrenceWhateverElseIsInTheStep) {
  const Weights weights = make_weights(1, 2);
  const Rows one = make_rows(weights, 1, 43), many = make_rows(weights, 9, 44);
  for (const Target target : test::usable_targets()) {
    States alone = make_states(weights, 3), beside = alone;
    const StepResult expected =
        run_step(weights, {{&one, 0, 1, 0, false}}, alone, {{target, "recurrent"}});
    const StepResult mixed =
        run_step(weights, {{&many, 0, 9, 2, true}, {&one, 0, 1, 0, false}, {&many, 0, 2, 1, true}},
                 beside, {{target, "chunked"}});
    const auto width = weights.value_dim();
    expect_same_bits(expected.out, {mixed.out.begin() + 9 * width, mixed.out.begin() + 10 * width},
                     "outputs");
    const auto size = std::int64_t{width} * kD;
    expect_same_bits<float>({alone.state.begin(), alone.state.begin() + size},
                            {beside.state.begin(), beside.state.begin() + size}, "states");
  }
}

// Sequences of different kinds in one call: each has the bits it has alone.
TEST(GatedDeltaNet, SequencesDoNotDependOnTheBatch) {
  const Weights weights = make_weights(1, 2);
  std::vector<Rows> rows;
  for (int tokens : {3, 1, 66, 2, 1}) rows.push_back(make_rows(weights, tokens, 20));
  for_each_way(kOp, [&](const Way& way) {
    const std::vector<Part> parts{{&rows[0], 0, 3, 4, true},
                                  {&rows[1], 0, 1, 2, false},
                                  {&rows[2], 0, !test::is_slow(way.target) ? 66 : 5, 0, true},
                                  {&rows[3], 0, 2, -1, false},
                                  {&rows[4], 0, 1, 3, true}};
    const StepOptions options{way, 3, 8};
    States together = make_states(weights, 6), alone = together;
    const StepResult all = run_step(weights, parts, together, options);
    std::vector<bf16> out;
    for (const Part& part : parts) {
      const auto one = run_step(weights, {part}, alone, {way});
      out.insert(out.end(), one.out.begin(), one.out.end());
    }
    out.insert(out.end(), at(3 * weights.value_dim()), bf16{0});  // rows behind the last sequence
    expect_same_bits(out, all.out, "outputs");
    expect_same_bits(alone.state, together.state, "states");
    expect_same_bits(alone.conv, together.conv, "conv states");
    const States before = make_states(weights, 6);  // nobody had slots 1 and 5
    for (int slot : {1, 5}) {
      const auto size = at(std::int64_t{weights.value_dim()} * kD);
      EXPECT_EQ(std::memcmp(&before.state[at(slot) * size], &together.state[at(slot) * size],
                            size * sizeof(float)),
                0);
    }
  });
}

// Forcing the chunked form is for steps that have chunks; the others say what runs instead.
TEST(GatedDeltaNet, ForcedChunkedPlansTheFormOfOneToken) {
  const Weights weights = make_weights(1, 2);
  const Rows rows = make_rows(weights, 2, 31);
  for (const Target target : test::usable_targets())
    for (const int tokens : {1, 2}) {
      DeviceFixture fixture(target);
      const Args args =
          put_step(fixture, weights, {{&rows, 0, tokens, 0, true}}, make_states(weights, 1), {});
      const auto made = plan(args, fixture.where(), "chunked");
      ASSERT_TRUE(made) << made.status().to_string();
      EXPECT_EQ(made->variant_name, served_by({target, "chunked"}, tokens));
      const std::vector<std::string> refusals{
          "chunked: every sequence has one token: there is no chunk"};
      EXPECT_EQ(made->refusals, tokens == 1 ? refusals : std::vector<std::string>{});
    }
}

TEST(GatedDeltaNet, PlanServesFewerSequencesAndTokens) {
  const Weights weights = make_weights(1, 2);
  const Rows rows = make_rows(weights, 6, 30);
  for_each_way(kOp, [&](const Way& way) {
    States states = make_states(weights, 3), alone = states;
    DeviceFixture fixture(way.target);
    const int most = way.variant == "decode" ? 1 : 6;
    const std::vector<Part> many{{&rows, 0, most, 0, true}, {&rows, 0, (most + 1) / 2, 1, true}};
    const Plan made = test::plan_forced(fixture, put_step(fixture, weights, many, states, {}),
                                        way.variant, served_by(way, most));
    for (int tokens : {2, 1}) {
      if (tokens > most) continue;
      const std::vector<Part> parts{{&rows, 0, tokens, 2, true}};
      const StepResult expected = run_step(weights, parts, alone, {way});
      const StepResult found =
          run_step(weights, parts, states, {.way = way, .made_for_more = &made});
      expect_same_bits(expected.out, found.out, "outputs");
      expect_same_bits(alone.state, states.state, "states");
    }
  });
}

TEST(GatedDeltaNet, PaddingStartsFromZeroAndWritesNothing) {
  const Weights weights = make_weights(1, 1);
  const Rows rows = make_rows(weights, 4, 11);
  for_each_way(kOp, [&](const Way& way) {
    States states = make_states(weights, 2), fresh = states;
    const States before = states;
    const auto padded = run_step(weights, {{&rows, 0, 4, -1, false}}, states, {way});
    const auto started = run_step(weights, {{&rows, 0, 4, 0, true}}, fresh, {way});
    expect_same_bits(started.out, padded.out, "outputs");
    expect_same_bits(before.state, states.state, "states");
    expect_same_bits(before.conv, states.conv, "conv states");
  });
}

// Where the state goes changes neither its bits nor those of the outputs; the slot that was read
// stays as it is.
TEST(GatedDeltaNet, StateGoesToAnotherSlot) {
  const Weights weights = make_weights(1, 2);
  for (const int tokens : test::sizes({1, 2, 9, 66}, {1, 9})) {
    const Rows rows = make_rows(weights, tokens, 12);
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    for_each_way(kOp, [&](const Way& way) {
      if (test::is_slow(way.target) && tokens > 9) return;
      const States before = make_states(weights, 3);
      const auto slot_of = [&](const auto& all, int slot) {
        const auto size = all.size() / 3;
        return std::vector(all.begin() + static_cast<std::ptrdiff_t>(at(slot) * size),
                           all.begin() + static_cast<std::ptrdiff_t>(at(slot + 1) * size));
      };
      for (const bool fresh : {false, true}) {
        States same = before, other = before, none = before;
        const StepOptions options{way};
        const auto wanted = run_step(weights, {{&rows, 0, tokens, 1, fresh}}, same, options);
        const auto moved = run_step(weights, {{&rows, 0, tokens, 1, fresh, 2}}, other, options);
        const auto lost = run_step(weights, {{&rows, 0, tokens, 1, fresh, -1}}, none, options);
        expect_same_bits(wanted.out, moved.out, "outputs");
        expect_same_bits(wanted.out, lost.out, "outputs without a place for the state");
        expect_same_bits(slot_of(same.state, 1), slot_of(other.state, 2), "states");
        expect_same_bits(slot_of(same.conv, 1), slot_of(other.conv, 2), "conv states");
        for (const int slot : {0, 1}) {
          expect_same_bits(slot_of(before.state, slot), slot_of(other.state, slot), "other states");
          expect_same_bits(slot_of(before.conv, slot), slot_of(other.conv, slot), "other states");
        }
        expect_same_bits(before.state, none.state, "states that nobody writes");
        expect_same_bits(before.conv, none.conv, "conv states that nobody writes");
      }
    });
  }
}

// Whatever is wanted, bf16 rows have the same bits, and fp8 rows those that fp8_quant makes of
// them; rows behind the last sequence are quantised zeros.
TEST(GatedDeltaNet, QuantisesAsFp8QuantDoes) {
  const Weights weights = make_weights(1, 3);
  const Rows many = make_rows(weights, 5, 14), one = make_rows(weights, 1, 15);
  for_each_way(kOp, [&](const Way& way) {
    for (const auto& [layout, type] : {std::pair{ScaleLayout::kRow, DType::kE4M3},
                                       {ScaleLayout::kMnMajor, DType::kE4M3Fnuz},
                                       {ScaleLayout::kUe8m0Packed, DType::kE4M3}})
      for (const std::vector<Part>& parts :
           {std::vector<Part>{{&one, 0, 1, 0, true}, {&one, 0, 1, 1, false}},
            {{&many, 0, 5, 0, true}, {&one, 0, 1, 1, false}}}) {
        SCOPED_TRACE(std::string(name(layout)) + ", " + std::to_string(parts[0].end) + " tokens");
        States states = make_states(weights, 2), again = states, both = states;
        StepOptions options{way, 2, 8};
        const StepResult rows = run_step(weights, parts, states, options);
        options.fp8 = layout;
        options.fp8_type = type;
        const StepResult together = run_step(weights, parts, both, options);
        options.bf16 = false;
        const StepResult codes = run_step(weights, parts, again, options);
        expect_same_bits(rows.out, together.out, "bf16 rows");
        expect_same_bits(codes.codes, together.codes, "codes");
        expect_same_bits(codes.scales, together.scales, "scales");
        expect_same_bits(states.state, again.state, "states");

        DeviceFixture fixture(way.target);
        const std::int64_t tokens = std::ssize(rows.out) / weights.value_dim();
        const auto [high, wide] = scale_shape(layout, tokens, weights.value_dim(), kD);
        fp8_quant::Args quant;
        quant.in = fixture.put(rows.out, DType::kBF16, {tokens, weights.value_dim()});
        quant.out.fp8 = QuantView{.data = fixture.blank(type, {tokens, weights.value_dim()}),
                                  .scale = fixture.blank(scale_dtype(layout), {high, wide}),
                                  .group = kD,
                                  .layout = layout};
        test::run_plan(fixture, test::plan_forced(fixture, quant, "segment"), quant);
        expect_same_bits(fixture.get<std::uint8_t>(quant.out.fp8->data), codes.codes, "codes");
        TensorView scales = quant.out.fp8->scale;
        scales = view(scales.data, DType::kU8, scales.device, {high, wide * 4});
        expect_same_bits(fixture.get<std::uint8_t>(scales), codes.scales, "scales");
      }
  });
}

// One kernel against three, bit for bit: a step of each, from and to states of its own.
void expect_bits_of_recurrence(const Weights& weights, const std::vector<Part>& parts,
                               StepOptions options, States& found, States& wanted) {
  options.fp8 = ScaleLayout::kRow;
  const StepResult one = run_step(weights, parts, found, options);
  options.way.variant = "recurrent";
  const StepResult three = run_step(weights, parts, wanted, options);
  expect_same_bits(three.out, one.out, "outputs");
  expect_same_bits(three.codes, one.codes, "codes");
  expect_same_bits(three.scales, one.scales, "scales");
  expect_same_bits(wanted.state, found.state, "states");
  expect_same_bits(wanted.conv, found.conv, "conv states");
}

// Over many tokens, slots that change and rows of nobody.
TEST(GatedDeltaNet, DecodeHasTheBitsOfTheRecurrence) {
  const Weights weights = make_weights(2, 6);
  std::vector<Rows> rows;
  for (unsigned seed : {51, 52, 53})
    rows.push_back(make_rows(weights, 6, seed, seed == 52 ? 0.1f : 2.0f));
  for (const Way& way : test::all_ways(kOp)) {
    if (way.variant != "decode") continue;
    SCOPED_TRACE(test::to_string(way));
    States found = make_states(weights, 5), wanted = found;
    for (int t = 0; t < 6; ++t) {
      const std::vector<Part> parts{{&rows[0], t, t + 1, 0, false},
                                    {&rows[1], t, t, -1, false},
                                    {&rows[1], t, t + 1, 1 + t % 2, t == 0, 1 + (t + 1) % 2},
                                    {&rows[2], t, t + 1, 3, t == 3}};
      expect_bits_of_recurrence(weights, parts, {way, 4, 8}, found, wanted);
    }
  }
}

// The number of heads chooses how many blocks and threads there are for each.
TEST(GatedDeltaNet, DecodesAnyNumberOfHeads) {
  const Weights weights = make_weights(2, 6);
  std::vector<Rows> rows;
  for (unsigned seed : {51, 52, 53}) rows.push_back(make_rows(weights, 6, seed));
  for (const Way& way : test::all_ways(kOp)) {
    if (way.variant != "decode") continue;
    const std::vector<int> counts = test::is_slow(way.target)
                                        ? std::vector<int>{1, 6}
                                        : test::sizes({20, 40, 60, 100}, {20, 100});
    for (const int count : counts) {
      SCOPED_TRACE(test::to_string(way) + ", sequences " + std::to_string(count));
      std::vector<Part> parts;
      for (int i = 0; i < count; ++i) {
        const int token = i % 6;
        parts.push_back({&rows[static_cast<std::size_t>(i) % 3], token, token + 1, i, i % 7 == 0});
      }
      States found = make_states(weights, count), wanted = found;
      expect_bits_of_recurrence(weights, parts, {way}, found, wanted);
    }
  }
}

// Sequences without rows, as padding has them, change nothing.
TEST(GatedDeltaNet, SequencesMayHaveNoRows) {
  const Weights weights = make_weights(1, 2);
  const Rows rows = make_rows(weights, 3, 13);
  for_each_way(kOp, [&](const Way& way) {
    States padded = make_states(weights, 2), plain = padded;
    const Part real{&rows, 0, 3, 0, false}, nothing{&rows, 0, 0, -1, true};
    const auto wanted = run_step(weights, {real}, plain, {way});
    const auto found = run_step(weights, {real, nothing, nothing}, padded, {way});
    expect_same_bits(wanted.out, found.out, "outputs");
    expect_same_bits(plain.state, padded.state, "states");
    expect_same_bits(plain.conv, padded.conv, "conv states");
  });
}

TEST(GatedDeltaNet, RefusalsSayWhatIsAccepted) {
  const Weights weights = make_weights(1, 2);
  const Rows rows = make_rows(weights, 3, 1);
  DeviceFixture fixture(Target::kCpu);
  const std::vector<Part> parts{{&rows, 0, 2, 0, true}, {&rows, 2, 3, 1, true}};
  const Args good = put_step(fixture, weights, parts, make_states(weights, 5), {});
  const QuantView groups_of_64{.data = fixture.blank(DType::kE4M3, {3, 2 * kD}),
                               .scale = fixture.blank(DType::kF32, {3, 4}),
                               .group = 64};
  test::expect_refusals(
      kOp, good,
      {{[](Args& a) { a.v_heads = 3, a.k_heads = 2; }, "share"},
       {[](Args& a) { a.state.dtype = DType::kBF16; }, "state is"},
       {[](Args& a) { a.conv_state.shape[0] = 4; }, "slots"},
       {[](Args& a) { a.conv_state.shape[1] = 3; }, "conv_state"},
       {[](Args& a) { a.scratch.shape[1] -= 1; }, "scratch_columns"},
       {[](Args& a) { a.out.bf16.reset(); }, "neither bf16 nor fp8"},
       {[](Args& a) { a.out.bf16->shape[1] = kD; }, "out.bf16"},
       {[](Args& a) { a.scratch.stride[0] = 99 * kD; }, "strided"},
       {[&](Args& a) { a.out.fp8 = groups_of_64; }, "a v head"},
       {[](Args& a) { a.sequence_lengths.dtype = DType::kF32; }, "sequence_lengths"},
       {[](Args& a) { a.sequence_starts.shape[0] = 2; }, "sequence_starts"}});
}

}  // namespace
}  // namespace tenon::gated_delta_net
