// How a row of 16-bit elements travels between ranks: as it is (Plain), or bf16 in 12 bits of 16,
// without loss (Packed). The variants are written once for both.
// Not here: the rules of the exchange (comm/device/exchange.cuh), what is sent to whom.
//
// Packed. A bf16 is a sign, 8 bits of exponent and 7 of mantissa, and neighbours in a row are of
// like size. The lanes of a wave hold neighbouring vectors; they agree on the largest exponent
// among them, and each sends of its eight elements
//   8 bytes: signs and mantissas
//   4 bytes: how far each exponent lies below the largest, in 4 bits; on lane 0 in 3 bits, which
//            leaves 8 for the largest itself
// A lane that has an element further below, or a word that would be kNotArrived, sends its vector
// as it is (whole). So a vector takes 20 bytes of a slot, and 12 of the link where elements of a
// wave differ by less than 15 powers of two.
//
// clang-format off
//   bytes      0 .. 7 (signs)                  8 .. 11 (exponents)                    12 .. 19 (rest)
//              ------------------------------  -------------------------------------  ---------------
//   packed     8 x [sign 1 | mantissa 7]       8 x 4 bits: largest - exponent         not sent
//   lane 0     8 x [sign 1 | mantissa 7]       largest 8 | 8 x 3 bits: largest - ...  not sent
//   whole      elements 0 .. 3 as they are     the escape, which no vector has        elements 4 .. 7
//
//   a row of V vectors:  [ V x 8 bytes signs ][ V x 4 bytes exponents ][ V x 8 bytes rest ]
// clang-format on
#pragma once

#include "tenon/comm/device/exchange.cuh"
#include "tenon/device/reduce.cuh"
#include "tenon/ops/common/wide.cuh"
#include "tenon/ops/fused_allreduce_rmsnorm_quant/mailbox_layout.h"

namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant {

// Where a thread's vector of a row lies in a mailbox: what look(), clear() and take() go by. Of the
// vectors that travel whole most are lane 0's: it looks at the spare bytes too, so that it need not
// wait for them afterwards.
struct PackedAddress {
  std::byte *signs, *exponents, *rest;
  Word2* early;  // what lane 0 saw of the rest
};
TENON_DEVICE Word4 look(const PackedAddress& place) {
  const Word2 signs = load8_relaxed(place.signs);
  const std::uint32_t exponents = load4_relaxed(place.exponents);
  if (place.early != nullptr && lane_id() == 0) *place.early = load8_relaxed(place.rest);
  return {signs.x, signs.y, exponents, 0};
}
TENON_DEVICE void clear(const PackedAddress& place) {
  store8_relaxed(place.signs, {kNotArrived, kNotArrived});
  store4_relaxed(place.exponents, kNotArrived);
}
// The spare bytes.
struct RestPlace {
  std::byte* at;
};
TENON_DEVICE Word4 look(const RestPlace& place) {
  const Word2 rest = load8_relaxed(place.at);
  return {rest.x, rest.y, 0, 0};
}
TENON_DEVICE void clear(const RestPlace& place) {
  store8_relaxed(place.at, {kNotArrived, kNotArrived});
}

// A vector made ready for the way.
struct Parcel {
  Word4 words;  // Plain: the vector. Packed: signs and mantissas in x and y, exponents in z
  bool is_whole;
  Word2 rest;  // of a whole one
};

struct Plain {
  static constexpr bool kPacks = false;
  using Address = SlotAddress;
};
struct Packed {
  static constexpr bool kPacks = true;
  using Address = PackedAddress;
};

// What an early look found; take_vector() goes on from there.
struct EarlyLook {
  Word4 words = kNothing;
  Word2 rest = {kNotArrived, kNotArrived};
};

// Vector `vector` of the row at `row`, which has `vectors` of them.
template <class Wire>
TENON_DEVICE typename Wire::Address address_of(std::byte* row, int vectors, int vector,
                                               [[maybe_unused]] Word2* early = nullptr) {
  if constexpr (Wire::kPacks) {
    // Waves have even numbers of vectors.
    const int rest =
        kWave > 1 ? vectors * 12 : tenon::fused_allreduce_rmsnorm_quant::rest_offset(vectors);
    return {row + vector * 8, row + vectors * 8 + vector * 4, row + rest + vector * 8, early};
  } else {
    return {row + vector * 16};
  }
}

// How a lane writes its exponents: `bits` each, in each half of a word four; `fields` are where two
// of them lie, `escape` what no vector's exponents are. Lane 0 has the bits besides for the
// largest.
struct Coding {
  int bits;
  std::uint32_t fields, escape;
};
TENON_DEVICE Coding own_coding() {
  const bool first = lane_id() == 0;
  return {first ? 3 : 4, first ? 0x00070007u : 0x000f000fu, first ? 0x0fff0fffu : 0xfffffffeu};
}
TENON_DEVICE std::uint32_t in_both_halves(std::uint32_t value) { return value | value << 16; }

// Every lane of the wave must call this.
template <class Protocol>
TENON_DEVICE Parcel compress_bf16(Word4 vector) {
  const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
  // Not 255, the exponent of infinities and NaN: those travel whole, and lane 0's word is never
  // kNotArrived.
  std::uint32_t largest = max_lane(absmax_bits<1>(&vector) >> 7);
  largest = largest < 254 ? largest : 254;
  const Coding coding = own_coding();
  std::uint32_t exponents = 0, outside = 0, signs[4];
  TENON_UNROLL
  for (int i = 0; i < 4; ++i) {
    // A negative difference borrows from the half above and shows outside of the fields.
    const std::uint32_t below = in_both_halves(largest) - (words[i] >> 7 & 0x00ff00ffu);
    outside |= below;
    exponents |= below << (coding.bits * i);
    signs[i] = (words[i] >> 8 & 0x00800080u) | (words[i] & 0x007f007fu);
  }
  Parcel parcel{{signs[0] | signs[1] << 8, signs[2] | signs[3] << 8, exponents, 0}, false, {}};
  parcel.is_whole = ((outside & ~coding.fields) != 0) |
                    ((exponents & coding.escape) == coding.escape) |
                    (Protocol::kReplaces & !has_arrived(parcel.words));
  if (parcel.is_whole) {
    const Word4 whole = sendable<Protocol>(vector);
    parcel.words = {whole.x, whole.y, coding.escape, 0};
    parcel.rest = {whole.z, whole.w};
  }
  if (lane_id() == 0)
    parcel.words.z = (parcel.words.z & 0x0fff0fffu) | (largest & 0xfu) << 12 | largest >> 4 << 28;
  return parcel;
}

// Every lane of the wave must call this: the vector of `words`, unless it is whole.
TENON_DEVICE Word4 expand_bf16(Word4 words, bool* is_whole) {
  const std::uint32_t first = shuffle_from(words.z, 0);
  const std::uint32_t largest = in_both_halves((first >> 12 & 0xfu) | (first >> 28) << 4);
  const Coding coding = own_coding();
  *is_whole = (words.z & coding.escape) == coding.escape;
  std::uint32_t out[4];
  TENON_UNROLL
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t signs = (i < 2 ? words.x : words.y) >> (i % 2 * 8);
    const std::uint32_t below = words.z >> (coding.bits * i) & coding.fields;
    out[i] = (signs & 0x00800080u) << 8 | (signs & 0x007f007fu) | (largest - below) << 7;
  }
  return {out[0], out[1], out[2], out[3]};
}

// Every lane of the wave must call this, also where a call is lost.
template <class Wire, class Protocol>
TENON_DEVICE Parcel wrap(Word4 vector) {
  if constexpr (Wire::kPacks) return compress_bf16<Protocol>(vector);
  return {sendable<Protocol>(vector), false, {}};
}

// Sends vector `vector` to the row at `row` of a peer's mailbox.
template <class Wire>
TENON_DEVICE void post(std::byte* row, int vectors, int vector, const Parcel& parcel) {
  const typename Wire::Address place = address_of<Wire>(row, vectors, vector);
  if constexpr (Wire::kPacks) {
    store8_relaxed(place.signs, {parcel.words.x, parcel.words.y});
    store4_relaxed(place.exponents, parcel.words.z);
    if (parcel.is_whole) store8_relaxed(place.rest, parcel.rest);
  } else {
    store16_relaxed(place.at, parcel.words);
  }
}

// The vector of which take() brought `words` from `place`. Every lane of the wave must call this.
template <class Protocol>
TENON_DEVICE Word4 unwrap(const ChannelView&, Call&, Phase, int, std::uint32_t, const SlotAddress&,
                          Word4 words) {
  return words;
}
template <class Protocol>
TENON_DEVICE Word4 unwrap(const ChannelView& team, Call& call, Phase phase, int sender,
                          std::uint32_t name, const PackedAddress& place, Word4 words) {
  bool is_whole = false;
  const Word4 unpacked = expand_bf16(words, &is_whole);
  if (!is_whole) return unpacked;
  const Word2 early = place.early == nullptr ? Word2{kNotArrived, kNotArrived} : *place.early;
  const Word4 rest = take<Protocol>(team, call, phase, sender, name, RestPlace{place.rest},
                                    {early.x, early.y, 0, 0}, false);
  return {words.x, words.y, rest.x, rest.y};
}

// Ends with vector `vector` of the row that `sender` sent to `row`. Where kMaxSpan is 1 or rows
// travel packed, every lane of the wave must call this. The rest is take()'s.
template <class Wire, class Protocol, int kMaxSpan>
TENON_DEVICE Word4 take_vector(const ChannelView& team, Call& call, Phase phase, int sender,
                               std::uint32_t name, std::byte* row, int vectors, int vector,
                               EarlyLook early = {}) {
  const auto place = address_of<Wire>(row, vectors, vector, &early.rest);
  const Word4 words =
      take<Protocol>(team, call, phase, sender, name, place, early.words, kMaxSpan == 1);
  return unwrap<Protocol>(team, call, phase, sender, name, place, words);
}

}  // namespace tenon::TENON_TARGET::fused_allreduce_rmsnorm_quant
