// tenon._tenon: the functions of bindings/c/tenon.h for Python. Arguments are checked there; here
// arrays become tensors, codes become exceptions, and the GIL is released while something may wait.
// What users see is in bindings/python/tenon.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "bindings/c/tenon.h"
#include "bindings/python/src/dict_of.h"
#include "bindings/python/src/dlpack.h"
#include "bindings/python/src/raise.h"
#include "bindings/python/src/released.h"

namespace tenon::python {
namespace {

namespace nb = nanobind;
using namespace nb::literals;
using Use = BorrowedTensor::Use;

void check(tenon_code code) {
  if (code != TENON_OK) raise(code, tenon_last_error());
}

// `call` without the GIL.
template <class Call>
void check_waiting(Call call) {
  tenon_code code = TENON_OK;
  {
    const Released released;
    code = call();
  }
  check(code);
}

// A text of the library: asked for its size, then for itself. One that grew in between is cut.
template <class Ask>
std::string text_of(Ask ask) {
  std::uint64_t bytes = 0;
  check_waiting([&] { return ask(nullptr, &bytes); });
  std::string text(static_cast<std::size_t>(bytes), '\0');
  check_waiting([&] { return ask(text.data(), &bytes); });
  text.resize(std::strlen(text.c_str()));
  return text;
}

const char* or_null(const std::optional<std::string>& text) {
  return text ? text->c_str() : nullptr;
}

// Owns a handle until close() or its end. The library looks handles up, so that one thread may
// close what another uses.
template <class Handle, tenon_code (*kDestroy)(Handle*)>
class Owned {
 public:
  Owned(const char* kind, Handle* handle, bool on_device)
      : kind_(kind), handle_(handle), on_device_(on_device) {}
  Owned(Owned&& other) noexcept
      : kind_(other.kind_),
        handle_(std::exchange(other.handle_, nullptr)),
        on_device_(other.on_device_) {}
  Owned& operator=(Owned&&) = delete;
  ~Owned() { kDestroy(std::exchange(handle_, nullptr)); }

  Handle* get() const {
    if (handle_ == nullptr)
      raise(TENON_INVALID_ARGUMENT,
            std::string("the ") + kind_ + " was closed; accepted: one that is open");
    return handle_;
  }
  void close() { check(kDestroy(std::exchange(handle_, nullptr))); }
  bool closed() const { return handle_ == nullptr; }
  bool on_device() const { return on_device_; }

 private:
  const char* kind_;
  Handle* handle_;
  bool on_device_;
};

using Team = Owned<tenon_team, tenon_team_destroy>;
using Communicator = Owned<tenon_communicator, tenon_communicator_destroy>;
using Channel = Owned<tenon_channel, tenon_channel_destroy>;
using Boundary = Owned<tenon_boundary, tenon_boundary_destroy>;

struct Options {
  std::string target;
  std::optional<std::string> transport;
  int device, concurrent;
  bool only_exchanges;
  std::uint64_t deadline_ms;

  tenon_communicator_options plain() const {
    tenon_communicator_options options = TENON_COMMUNICATOR_OPTIONS_INIT;
    options.target = target.c_str();
    options.device = device;
    options.concurrent = concurrent;
    options.only_exchanges = only_exchanges ? 1 : 0;
    options.transport = or_null(transport);
    options.deadline_ms = deadline_ms;
    return options;
  }
  bool on_device() const { return target == "cuda" || target == "hip"; }
};

template <class Make>
Communicator make_communicator(const Options& options, Make make) {
  const tenon_communicator_options plain = options.plain();
  tenon_communicator* made = nullptr;
  check_waiting([&] { return make(&plain, &made); });
  return Communicator("communicator", made, options.on_device());
}

Communicator from_environment(const Options& options) {
  return make_communicator(options, [](const auto* plain, auto** made) {
    return tenon_communicator_from_environment(plain, made);
  });
}

Communicator from_id(const Options& options, const nb::bytes& bytes, int rank, int num_ranks) {
  tenon_unique_id id;
  if (bytes.size() != sizeof id.bytes)
    raise(TENON_INVALID_ARGUMENT, "the id has " + std::to_string(bytes.size()) +
                                      " bytes; accepted: the 128 that unique_id() gave");
  std::memcpy(id.bytes, bytes.c_str(), sizeof id.bytes);
  return make_communicator(options, [&](const auto* plain, auto** made) {
    return tenon_communicator_from_id(plain, &id, rank, num_ranks, made);
  });
}

Communicator from_team(const Options& options, const Team& team, int rank) {
  tenon_team* const handle = team.get();
  return make_communicator(options, [&](const auto* plain, auto** made) {
    return tenon_communicator_from_team(plain, handle, rank, made);
  });
}

nb::dict query(const Communicator& communicator) {
  tenon_communicator_info info = TENON_COMMUNICATOR_INFO_INIT;
  check(tenon_communicator_query(communicator.get(), &info));
  return dict_of("rank", info.rank, "num_ranks", info.num_ranks, "target", info.target, "transport",
                 info.transport, "device", info.device, "peer_pointers", info.peer_pointers != 0,
                 "capturable", info.capturable != 0, "shares_device", info.shares_device != 0,
                 "starts_early", info.starts_early != 0, "deadline_ms", info.deadline_ms);
}

using Collective = tenon_code (*)(tenon_communicator*, const tenon_tensor*, const tenon_tensor*,
                                  void*);

template <Collective kRun>
void run_collective(const Communicator& communicator, nb::handle in, nb::handle out,
                    nb::handle stream) {
  tenon_communicator* const handle = communicator.get();
  Place place{communicator.on_device(), stream_of_number(stream)};
  const BorrowedTensor from("array", in, place);
  if (stream.is_none()) place.stream = current_stream(in, from);
  const BorrowedTensor to("out", out, place, Use::kWritten);
  check_waiting([&] { return kRun(handle, from.get(), to.get(), place.stream); });
}

Channel make_channel(const Communicator& communicator, int hidden, int max_rows, int dtype,
                     bool sharded_residual, const std::optional<std::string>& label) {
  tenon_channel_spec spec = TENON_CHANNEL_SPEC_INIT;
  spec.hidden = hidden;
  spec.max_rows = max_rows;
  spec.dtype = dtype;
  spec.sharded_residual = sharded_residual ? 1 : 0;
  spec.label = or_null(label);
  tenon_communicator* const handle = communicator.get();
  tenon_channel* made = nullptr;
  check_waiting([&] { return tenon_channel_make(handle, &spec, &made); });
  return Channel("channel", made, communicator.on_device());
}

Boundary make_boundary(const Channel& channel, int hidden, int max_rows, int dtype,
                       int weight_dtype, float eps, float offset, bool fresh_residual,
                       bool want_rows, bool want_fp8, int fp8, int group, int layout,
                       int force_stage, int max_stage,
                       const std::optional<std::string>& force_variant,
                       const std::optional<std::string>& site) {
  tenon_boundary_spec spec = TENON_BOUNDARY_SPEC_INIT;
  spec.hidden = hidden;
  spec.max_rows = max_rows;
  spec.dtype = dtype;
  spec.weight_dtype = weight_dtype;
  spec.eps = eps;
  spec.offset = offset;
  spec.fresh_residual = fresh_residual ? 1 : 0;
  spec.want_rows = want_rows ? 1 : 0;
  spec.want_fp8 = want_fp8 ? 1 : 0;
  spec.fp8 = fp8;
  spec.group = group;
  spec.layout = layout;
  spec.force_stage = force_stage;
  spec.max_stage = max_stage;
  spec.force_variant = or_null(force_variant);
  spec.site = or_null(site);
  tenon_channel* const handle = channel.get();
  tenon_boundary* made = nullptr;
  check_waiting([&] { return tenon_boundary_make(handle, &spec, &made); });
  return Boundary("boundary", made, channel.on_device());
}

// The arrays of a call, which outlive it, and the tensors that they are. `stream` is a number, or
// None for that on which the addend's library works.
class Call {
 public:
  Call(const Boundary& boundary, nb::handle partial, nb::handle residual, nb::handle weight,
       nb::handle rows, nb::handle codes, nb::handle scales, nb::handle stream)
      : place_{boundary.on_device(), stream_of_number(stream)},
        array_(partial),
        partial_("partial", partial, place_),
        here_{place_.on_device, stream_for(stream)},
        residual_("residual", residual, here_, Use::kWritten),
        weight_("weight", weight, here_),
        rows_("rows", rows, here_, Use::kWritten),
        codes_("codes", codes, here_, Use::kWritten),
        scales_("scales", scales, here_, Use::kWritten) {}

  void* stream_for(nb::handle stream) const {
    return stream.is_none() ? current_stream(array_, partial_) : stream_of_number(stream);
  }
  void run(const Boundary& boundary) const { run(boundary, here_.stream); }
  void run(const Boundary& boundary, void* stream) const {
    tenon_boundary* const handle = boundary.get();
    tenon_boundary_call call = TENON_BOUNDARY_CALL_INIT;
    call.partial = partial_.get();
    call.residual = residual_.get();
    call.weight = weight_.get();
    call.rows = rows_.get();
    call.codes = codes_.get();
    call.scales = scales_.get();
    call.stream = stream;
    check_waiting([&] { return tenon_boundary_run(handle, &call); });
  }

 private:
  const Place place_;
  const nb::handle array_;
  const BorrowedTensor partial_;
  const Place here_;
  const BorrowedTensor residual_, weight_, rows_, codes_, scales_;
};

void run_boundary(const Boundary& boundary, nb::handle partial, nb::handle residual,
                  nb::handle weight, nb::handle rows, nb::handle codes, nb::handle scales,
                  nb::handle stream) {
  boundary.get();  // one that was closed is said before anything about arrays
  Call(boundary, partial, residual, weight, rows, codes, scales, stream).run(boundary);
}

// A call that is made again and again: its arrays are looked at once, and kept. Nobody else changes
// them.
class BoundCall {
 public:
  BoundCall(nb::object boundary, nb::handle partial, nb::handle residual, nb::handle weight,
            nb::handle rows, nb::handle codes, nb::handle scales)
      : boundary_(std::move(boundary)),
        arrays_(nb::make_tuple(partial, residual, weight, rows, codes, scales)),
        call_(open_boundary(), partial, residual, weight, rows, codes, scales, nb::none()) {}
  void run() const { run_on(nb::none()); }
  void run_on(nb::handle stream) const { call_.run(open_boundary(), call_.stream_for(stream)); }

 private:
  const Boundary& open_boundary() const {
    const auto& boundary = nb::cast<const Boundary&>(boundary_);
    boundary.get();
    return boundary;
  }

  const nb::object boundary_, arrays_;
  const Call call_;
};

nb::dict plan(const Boundary& boundary, int rows) {
  tenon_plan plan = TENON_PLAN_INIT;
  check(tenon_boundary_plan(boundary.get(), rows, &plan));
  return dict_of("max_rows", plan.max_rows, "stage", plan.stage, "variant", plan.variant, "reason",
                 plan.reason, "blocks", plan.blocks, "threads", plan.threads, "mailbox_bytes",
                 plan.mailbox_bytes, "calls", plan.calls);
}

nb::tuple counts(const Boundary& boundary) {
  std::array<std::uint64_t, 3> counts{};
  check(tenon_boundary_counts(boundary.get(), counts.data()));
  return nb::make_tuple(counts[0], counts[1], counts[2]);
}

nb::bytes unique_id(const std::optional<std::string>& address) {
  tenon_unique_id id;
  check_waiting([&] { return tenon_unique_id_make(or_null(address), &id); });
  return nb::bytes(id.bytes, sizeof id.bytes);
}

Team make_team(int num_ranks) {
  tenon_team* made = nullptr;
  check(tenon_team_make(num_ranks, &made));
  return Team("team", made, false);
}

int device_count(const std::string& target) {
  std::int32_t count = 0;
  check(tenon_device_count(target.c_str(), &count));
  return count;
}

void define_texts(nb::module_& module) {
  module.def("abi", tenon_abi);
  module.def("version", tenon_version);
  module.def("commit", tenon_commit);
  module.def("build_info", tenon_build_info);
  module.def("env_text", [] {
    return text_of([](char* text, std::uint64_t* bytes) { return tenon_env_text(text, bytes); });
  });
  module.def("device_count", device_count, "target"_a);
  module.def("unique_id", unique_id, "address"_a.none());
}

void define_communicator(nb::module_& module) {
  nb::class_<Options>(module, "Options")
      .def(
          "__init__",
          [](Options* self, std::string target, std::optional<std::string> transport, int device,
             int concurrent, bool only_exchanges, std::uint64_t deadline_ms) {
            new (self) Options{std::move(target), std::move(transport), device,
                               concurrent,        only_exchanges,       deadline_ms};
          },
          "target"_a, "transport"_a.none(), "device"_a, "concurrent"_a, "only_exchanges"_a,
          "deadline_ms"_a);
  nb::class_<Team>(module, "Team")
      .def_static("make", make_team, "num_ranks"_a)
      .def("close", &Team::close);
  nb::class_<Communicator>(module, "Communicator")
      .def_static("from_environment", from_environment, "options"_a)
      .def_static("from_id", from_id, "options"_a, "id"_a, "rank"_a, "num_ranks"_a)
      .def_static("from_team", from_team, "options"_a, "team"_a, "rank"_a)
      .def("close", &Communicator::close)
      .def("closed", &Communicator::closed)
      .def("query", query)
      .def("refusals",
           [](const Communicator& self) {
             return text_of([handle = self.get()](char* text, std::uint64_t* bytes) {
               return tenon_communicator_refusals(handle, text, bytes);
             });
           })
      .def("health", [](const Communicator& self) { check(tenon_communicator_health(self.get())); })
      .def("abort",
           [](const Communicator& self, const std::string& why) {
             check_waiting([&, handle = self.get()] {
               return tenon_communicator_abort(handle, why.c_str());
             });
           })
      .def("barrier",
           [](const Communicator& self) {
             check_waiting([handle = self.get()] { return tenon_communicator_barrier(handle); });
           })
      .def("suspend",
           [](const Communicator& self) {
             check_waiting([handle = self.get()] { return tenon_communicator_suspend(handle); });
           })
      .def("resume",
           [](const Communicator& self) {
             check_waiting([handle = self.get()] { return tenon_communicator_resume(handle); });
           })
      .def("all_reduce", run_collective<tenon_all_reduce>, "array"_a, "out"_a, "stream"_a.none())
      .def("all_gather", run_collective<tenon_all_gather>, "array"_a, "out"_a, "stream"_a.none())
      .def("explain", [](const Communicator& self, int hidden, int max_rows) {
        return text_of([&, handle = self.get()](char* text, std::uint64_t* bytes) {
          return tenon_communicator_explain(handle, hidden, max_rows, text, bytes);
        });
      });
}

void define_boundary(nb::module_& module) {
  nb::class_<Channel>(module, "Channel")
      .def_static("make", make_channel, "communicator"_a, "hidden"_a, "max_rows"_a, "dtype"_a,
                  "sharded_residual"_a, "label"_a.none())
      .def("close", &Channel::close)
      .def("num_bytes", [](const Channel& self) {
        std::uint64_t bytes = 0;
        check(tenon_channel_bytes(self.get(), &bytes));
        return bytes;
      });
  nb::class_<BoundCall>(module, "BoundCall")
      .def(nb::init<nb::object, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                    nb::handle>(),
           "boundary"_a, "partial"_a, "residual"_a, "weight"_a, "rows"_a.none(), "codes"_a.none(),
           "scales"_a.none())
      .def("run", &BoundCall::run)
      .def("run", &BoundCall::run_on, "stream"_a.none());
  nb::class_<Boundary>(module, "Boundary")
      .def_static("make", make_boundary, "channel"_a, "hidden"_a, "max_rows"_a, "dtype"_a,
                  "weight_dtype"_a, "eps"_a, "offset"_a, "fresh_residual"_a, "want_rows"_a,
                  "want_fp8"_a, "fp8"_a, "group"_a, "layout"_a, "force_stage"_a, "max_stage"_a,
                  "force_variant"_a.none(), "site"_a.none())
      .def("close", &Boundary::close)
      .def("run", run_boundary, "partial"_a, "residual"_a, "weight"_a, "rows"_a.none(),
           "codes"_a.none(), "scales"_a.none(), "stream"_a.none())
      .def("plan", plan, "rows"_a)
      .def("counts", counts)
      .def("explain", [](const Boundary& self) {
        return text_of([handle = self.get()](char* text, std::uint64_t* bytes) {
          return tenon_boundary_explain(handle, text, bytes);
        });
      });
}

}  // namespace
}  // namespace tenon::python

NB_MODULE(_tenon, module) {
  nanobind::set_leak_warnings(false);  // a thread that waits at the end of the process keeps things
  tenon::python::define_texts(module);
  tenon::python::define_communicator(module);
  tenon::python::define_boundary(module);
}
