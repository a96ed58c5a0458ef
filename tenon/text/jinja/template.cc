// The public face: errors become a Status here.
#include <new>

#include "tenon/text/jinja/interpreter.h"
#include "tenon/text/utf8.h"

namespace tenon::jinja {
namespace {

template <class Work>
auto caught(Work&& work) -> Result<decltype(work())> {
  try {
    return work();
  } catch (const Error& error) {
    const std::string where = error.line > 0 ? "line " + std::to_string(error.line) + ": " : "";
    return Status::error(Code::kInvalidArgument, where + error.message);
  } catch (const std::bad_alloc&) {
    return Status::error(Code::kOutOfMemory, "no memory is left for the template");
  }
}

}  // namespace

struct Template::State {
  Body body;
};

Template::Template(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;

Result<Template> Template::parse(std::string_view source) {
  if (!utf8_valid(source))
    return Status::error(Code::kInvalidArgument, "the template is not UTF-8");
  auto state = std::make_unique<State>();
  auto body = caught([&] { return parse_template(source); });
  if (!body) return body.status();
  state->body = std::move(*body);
  return Template(std::move(state));
}

Result<std::string> Template::render(const Value& variables, const RenderOptions& options) const {
  if (!variables.is_dict())
    return Status::error(Code::kInvalidArgument, "the variables of a template must be a dict");
  return caught([&] {
    Interpreter interpreter(options);
    return interpreter.run(state_->body, variables);
  });
}

}  // namespace tenon::jinja
