// The template language and the chat templates against goldens of Jinja2
// (tools/template_goldens.py), and the bounds that keep hostile templates from hanging or
// overflowing.
#include "tenon/text/chat_template.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <tuple>

#include "tenon/text/jinja/template.h"
#include "tests/support/patience.h"

namespace tenon {
namespace {

using jinja::Value;

std::string read(const std::string& path) {
  std::ifstream file(std::string(TENON_SOURCE_DIR) + "/" + path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

const Value& goldens() {
  static const Value value = [] {
    auto parsed = jinja::parse_json(read("tests/data/templates/goldens.json"));
    EXPECT_TRUE(parsed) << parsed.status().to_string();
    return *parsed;
  }();
  return value;
}

const std::string& text(const Value& golden, const char* key) {
  return golden.find(key)->as_string();
}

jinja::RenderOptions fixed_clock() {
  setenv("TZ", "UTC", 1);
  tzset();
  jinja::RenderOptions options;
  options.now = static_cast<std::time_t>(goldens().find("now")->as_int());
  return options;
}

Result<std::string> rendered(const std::string& source, const Value& variables,
                             const jinja::RenderOptions& options = {}) {
  TENON_ASSIGN(const auto parsed, jinja::Template::parse(source));
  return parsed.render(variables, options);
}

TEST(Jinja, RendersEverySnippetAsTheReference) {
  const auto& snippets = goldens().find("snippets")->items();
  ASSERT_GT(snippets.size(), 500u);
  for (const Value& golden : snippets) {
    auto made = rendered(text(golden, "template"), *goldens().find("variables"), fixed_clock());
    ASSERT_TRUE(made) << text(golden, "template") << "\n " << made.status().to_string();
    EXPECT_EQ(*made, text(golden, "output")) << text(golden, "template");
  }
}

TEST(Jinja, FailsWhereTheReferenceFailsAndNamesTheLine) {
  const auto& failures = goldens().find("failures")->items();
  ASSERT_GT(failures.size(), 100u);
  for (const Value& golden : failures) {
    auto made = rendered("\n\n" + text(golden, "template"), *goldens().find("variables"));
    ASSERT_FALSE(made) << text(golden, "template") << "\n gives " << *made << "\n wanted "
                       << text(golden, "error");
    EXPECT_EQ(made.status().message().substr(0, 8), "line 3: ")
        << text(golden, "template") << "\n " << made.status().to_string();
  }
}

TEST(Jinja, DoesAsTheReferenceInEveryGeneratedExpression) {
  const auto& all = goldens().find("generated")->items();
  ASSERT_GT(all.size(), 3000u);
  int wrong = 0;
  for (const Value& golden : all) {
    auto made = rendered(text(golden, "template"), *goldens().find("variables"), fixed_clock());
    const bool fails = golden.find("error") != nullptr;
    if (made ? !fails && *made == text(golden, "output") : fails) continue;
    if (++wrong <= 40)
      ADD_FAILURE() << text(golden, "template") << "\n gives "
                    << (made ? *made : made.status().to_string()) << "\n wanted "
                    << text(golden, fails ? "error" : "output");
  }
  EXPECT_EQ(wrong, 0) << "of " << all.size();
}

TEST(Jinja, IntegersOfARequestKeepAllTheirDigits) {
  auto variables = jinja::parse_json(text(goldens(), "big_variables"));
  ASSERT_TRUE(variables) << variables.status().to_string();
  for (const Value& golden : goldens().find("big")->items()) {
    auto made = rendered(text(golden, "template"), *variables);
    ASSERT_TRUE(made) << text(golden, "template") << "\n " << made.status().to_string();
    EXPECT_EQ(*made, text(golden, "output")) << text(golden, "template");
  }
  const std::string json = "{\"a\": [18446744073709551616, -9223372036854775809, 1e+22]}";
  EXPECT_EQ(*jinja::to_json(*jinja::parse_json(json)), json);
  EXPECT_EQ(*jinja::to_json(*jinja::parse_json(std::string(308, '9'))), std::string(308, '9'));
  EXPECT_FALSE(jinja::parse_json(std::string(400, '9')));
}

TEST(Jinja, ErrorsNameTheLineOfTheInnermostStatement) {
  auto line_of = [](const std::string& source) {
    auto made = rendered(source, Value::dict({}));
    EXPECT_FALSE(made);
    return std::string(made.status().message().substr(0, 7));
  };
  EXPECT_EQ(line_of("a\n{{ 1 +\n 'x' }}"), "line 2:");
  EXPECT_EQ(line_of("{% if true %}\n\n{{ raise_exception('stop') }}\n{% endif %}"), "line 3:");
  EXPECT_EQ(line_of("{% macro m() %}\n{{ a.b }}\n{% endmacro %}\n\n{{ m() }}"), "line 2:");
  EXPECT_EQ(line_of("{#\n\n#}\n{{ nope( }}"), "line 4:");
  EXPECT_EQ(line_of("{% for x in [1] %}\n\n"), "line 2:");
}

// ---- chat templates ----

Result<std::string> chat(const ChatTemplate& chat_template, const Value& golden) {
  ChatOptions options;
  options.add_generation_prompt = false;
  Value tools;
  for (const auto& [name, value] : golden.find("options")->pairs()) {
    if (name.as_string() == "tools") {
      tools = value;
    } else if (name.as_string() == "add_generation_prompt") {
      options.add_generation_prompt = value.as_bool();
    } else if (name.as_string() == "enable_thinking") {
      options.enable_thinking = value.as_bool();
    } else {
      options.more.emplace_back(name.as_string(), value);
    }
  }
  return chat_template.render_values(*golden.find("messages"), tools, options);
}

TEST(ChatTemplate, RendersEveryConversationAsTheReference) {
  std::string loaded;
  std::optional<ChatTemplate> chat_template;
  int succeeded = 0, refused = 0;
  for (const Value& golden : goldens().find("chats")->items()) {
    if (text(golden, "file") != loaded) {
      loaded = text(golden, "file");
      auto parsed = ChatTemplate::parse(read(loaded));
      ASSERT_TRUE(parsed) << parsed.status().to_string();
      chat_template.emplace(std::move(*parsed));
    }
    auto made = chat(*chat_template, golden);
    const std::string shown = *jinja::to_json(golden);
    if (golden.find("error")) {
      EXPECT_FALSE(made) << shown << "\n gives " << *made;
      ++refused;
    } else {
      ASSERT_TRUE(made) << shown << "\n " << made.status().to_string();
      EXPECT_EQ(*made, text(golden, "output")) << shown;
      ++succeeded;
    }
  }
  EXPECT_GT(succeeded, 150);
  EXPECT_GT(refused, 40);
}

TEST(ChatTemplate, LoadsFromACheckpointAndTakesPlainMessages) {
  auto loaded = ChatTemplate::load(std::string(TENON_SOURCE_DIR) + "/checkpoints/tiny");
  ASSERT_TRUE(loaded) << loaded.status().to_string();
  auto made = loaded->render({{"system", "Be brief.", {}}, {"user", "Hi", {}}});
  ASSERT_TRUE(made) << made.status().to_string();
  EXPECT_EQ(made->find("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"),
            0u);
  auto refused = loaded->render(std::vector<ChatMessage>{});
  EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
}

class Folder {
 public:
  Folder() : path_(testing::TempDir() + "tenon_chat_" + std::to_string(getpid())) {
    std::ignore = std::system(("mkdir -p " + path_).c_str());
  }
  ~Folder() { std::ignore = std::system(("rm -r " + path_).c_str()); }
  void write(const std::string& name, const std::string& content) {
    std::ofstream(path_ + "/" + name) << content;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(ChatTemplate, FallsBackToTheTokenizerConfig) {
  Folder folder;
  EXPECT_EQ(ChatTemplate::load(folder.path()).status().code(), Code::kIo);
  folder.write("tokenizer_config.json",
               "{\"eos_token\": {\"content\": \"<e>\"}, \"bos_token\": \"<b>\","
               "\"chat_template\": \"{{ bos_token ~ messages|length ~ eos_token }}\"}");
  auto loaded = ChatTemplate::load(folder.path());
  ASSERT_TRUE(loaded) << loaded.status().to_string();
  EXPECT_EQ(*loaded->render({{"user", "x", {}}}), "<b>1<e>");
  folder.write("tokenizer_config.json",
               "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"r\"},"
               "{\"name\": \"default\", \"template\": \"d\"}]}");
  EXPECT_EQ(*ChatTemplate::load(folder.path())->render({{"user", "x", {}}}), "d");
  folder.write("chat_template.jinja", "{{ nope");
  EXPECT_FALSE(ChatTemplate::load(folder.path()));
  folder.write("tokenizer_config.json", "{");
  EXPECT_FALSE(ChatTemplate::load(folder.path()));
  folder.write("chat_template.jinja", "x");
  folder.write("tokenizer_config.json",
               "{\"a\": " + std::string(100'000, '[') + std::string(100'000, ']') + "}");
  EXPECT_FALSE(ChatTemplate::load(folder.path()));
}

// ---- bounds ----

TEST(JinjaBounds, HostileTemplatesEndSoonWithAnError) {
  const std::vector<std::string> hostile = {
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
      "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(1000) %}{% set ns.s = ns.s ~ ns.s "
      "%}{% endfor %}",
      "{% set ns = namespace(s='xx') %}{% for i in range(1000) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(1000) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(10000) %}{% set ns.s = [ns.s] %}{% endfor "
      "%}",
      "{% set ns = namespace(s={}) %}{% for i in range(10000) %}{% set ns.s = {'a': ns.s} %}{% "
      "endfor %}",
      "{% set ns = namespace(s=()) %}{% for i in range(1000) %}{% set ns.s = (ns.s, ns.s) %}{% "
      "endfor %}",
      "{% set ns = namespace(s=1) %}{% for i in range(190) %}{% set ns.s = [ns.s, ns.s] %}{% "
      "endfor %}{{ ns.s }}",
      "{{ 'x' * 10000000000 }}",
      "{{ [0] * 10000000000 }}",
      "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
      "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
      "{{ ('x' * 1000000)|replace('x', 'y' * 100)|length }}{{ ('x' * 30000000)|indent }}",
      "{{ range(90000)|join('y' * 100000) }}",
      "{{ ('y' * 100000).join(range(90000)|map('string')) }}",
      "{{ '1'.zfill(9223372036854775807) }}",
      "{{ 'x'|indent(999999999999) }}{{ ('\n' * 10000000)|indent(1000) }}",
      "{{ 10 ** 100000 }}",
      "{{ (10 ** 19000) * (10 ** 19000) }}",
      "{{ 10 ** (10 ** 100) }}",
      "{% for i in range(99999) %}{% set x = (7 ** 20000) * (3 ** 20000) %}{% endfor %}",
      "{% for i in range(99999) %}{% set x = (10 ** 4000) | string %}{% endfor %}",
      "{% for i in range(99999) %}{% set x = ('9' * 4300) | int %}{% endfor %}",
      "{% set a = 'a' * 1000000 %}{% set b = 'a' * 500000 ~ 'b' %}{% for i in range(999) %}{{ "
      "a.find(b) }}{{ a.rfind('b' ~ b) }}{{ b in a }}{{ a.replace(b, '') | length }}{{ a.split(b) "
      "| length }}{{ a.count(b) }}{{ a.partition(b) | length }}{% endfor %}",
      "{% set a = 'é' * 1000000 %}{% for i in range(999) %}{{ a | first }}{{ a | last }}{% endfor "
      "%}",
      "{% set a = 'é' * 1000000 %}{% for i in range(999) %}{{ a[i] }}{{ a[i:i+1] }}{{ a[-1] }}{% "
      "endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% macro m(n) %}{{ m(n) ~ m(n) }}{% endmacro %}{{ m(1) }}",
      "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) "
      "}}",
      "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
      "{{ range(99999)|sort|map('string')|map('upper')|list|length }}{% for i in range(9999) %}{{ "
      "range(99999)|sort }}{% endfor %}",
      "{% for i in range(99999) %}{% macro m() %}{{ i }}{% endmacro %}{% for j in range(9999) %}{{ "
      "m() }}{% endfor %}{% endfor %}",
      "{% for i in range(99999) %}{% set c = namespace() %}{% for j in range(999) %}{% set c.a = "
      "namespace(x=c) %}{% endfor %}{% endfor %}",
      "{% for i in range(99999) %}{{ 'a' in 'b' * 100000 }}{% endfor %}{% for i in range(99999) "
      "%}{{ ('b' * 10000)[1] }}{% endfor %}",
  };
  jinja::RenderOptions options;
  options.limits.max_work = 2'000'000;
  options.limits.max_output_bytes = 4 << 20;
  for (const std::string& source : hostile) {
    const auto begin = std::chrono::steady_clock::now();
    auto made = rendered(source, Value::dict({}), options);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    EXPECT_FALSE(made) << source;
    EXPECT_LT(taken.count(), 10.0 * test::kSlowdown) << source;  // some ms; without bounds for ever
  }
}

// As many names and keywords as some MB of template hold: what would be quadratic is charged for.
TEST(JinjaBounds, ManyNamesAreBounded) {
  std::string names, keywords = "{% macro m() %}{{ kwargs | length }}{% endmacro %}{{ m(";
  for (int i = 0; i < 100'000; ++i) {
    const std::string number = std::to_string(i);
    names.append("{% set a").append(number).append(" = 1 %}");
    keywords.append(i == 0 ? "b" : ", b").append(number).append("=1");
  }
  for (const std::string& source : {names, keywords + ") }}"}) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(rendered(source, Value::dict({})).status().code(), Code::kInvalidArgument);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    EXPECT_LT(taken.count(), 60.0 * test::kSlowdown);
  }
  EXPECT_TRUE(rendered(names.substr(0, names.find("{% set a5000 ")), Value::dict({})));
}

TEST(JinjaBounds, DeepNestingIsRefusedNotFollowed) {
  auto many = [](const std::string& part, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += part;
    return all;
  };
  const int n = 20'000;
  for (const std::string& source : {
           "{{ " + many("(", n) + "1" + many(")", n) + " }}",
           "{{ " + many("[", n) + many("]", n) + " }}",
           "{{ " + many("{1:", n) + "1" + many("}", n) + " }}",
           "{{ " + many("-", n) + "1 }}",
           "{{ " + many("not ", n) + "1 }}",
           "{{ 1" + many("+1", n) + " }}",
           "{{ 1" + many("|abs", n) + " }}",
           "{{ x" + many(".y", n) + " }}",
           "{{ x" + many("[0]", n) + " }}",
           "{{ x" + many("()", n) + " }}",
           "{{ 1" + many(" if 1 else 1", n) + " }}",
           "{{ 1" + many(" and 1", n) + " }}",
           "{{ 1" + many(" or 1", n) + " }}",
           "{{ f(" + many("f(", n) + " }}",
           "{{ a[" + many("a[", n) + " }}",
           "{{ 1" + many(" is eq not", n) + " }}",
           many("{% if 1 %}", n),
           many("{% for x in y %}", n),
           many("{% macro m() %}", n),
           "{% set " + many("(", n) + "a" + many(")", n) + " = 1 %}",
           "{{ " + many("(", n),
       }) {
    EXPECT_FALSE(rendered(source, Value::dict({}))) << source.substr(0, 40);
  }
  EXPECT_FALSE(jinja::parse_json(many("[", n)));
  EXPECT_FALSE(jinja::parse_json(many("[", n) + many("]", n)));
  EXPECT_TRUE(jinja::parse_json(many("[", 90) + many("]", 90)));
  EXPECT_FALSE(jinja::parse_json(many("{\"a\":", 100'000) + "1" + many("}", 100'000)));
  // Long, but not deep.
  EXPECT_TRUE(rendered("{{ 'a'" + many(" ~ 'a'", 20'000) + " }}", Value::dict({})));
  EXPECT_TRUE(
      rendered("{% if 0 %}" + many("{% elif 0 %}", 20'000) + "{% endif %}", Value::dict({})));
}

// Cut, doubled and shuffled templates: whatever comes, it comes as a Result.
TEST(JinjaBounds, DamagedTemplatesNeverCrash) {
  const std::string whole = read("tests/data/templates/agent.jinja");
  const Value variables =
      Value::dict({{"messages", *jinja::parse_json("[{\"role\":\"user\",\"content\":\"hi\"}]")}});
  std::mt19937 random(11);
  auto place = [&](const std::string& in) { return random() % (in.size() + 1); };
  jinja::RenderOptions options;
  options.limits.max_work = 100'000;
  int parsed = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string source = whole;
    for (auto changes = 1 + random() % 3; changes > 0; --changes) {
      const std::size_t at = place(source);
      switch (random() % 4) {
        case 0: source.erase(at, random() % 20); break;
        case 1: source.insert(at, source.substr(place(source), random() % 30)); break;
        case 2: source.insert(at, 1, "{}%#'\"()[]|.-+~*/ \n"[random() % 19]); break;
        default: source.resize(at);
      }
    }
    auto made = jinja::Template::parse(source);
    if (!made) continue;
    ++parsed;
    (void)made->render(variables, options);
  }
  EXPECT_GT(parsed, 50);
}

// ---- values ----

TEST(JinjaValue, JsonThereAndBack) {
  const std::string json =
      "{\"a\": [1, -2.5, true, null, \"x\\n\\u00e9\"], \"b\": {\"z\": {}, \"y\": []}, \"big\": "
      "1e+22}";
  auto value = jinja::parse_json(json);
  ASSERT_TRUE(value);
  EXPECT_EQ(
      *jinja::to_json(*value),
      "{\"a\": [1, -2.5, true, null, \"x\\né\"], \"b\": {\"z\": {}, \"y\": []}, \"big\": 1e+22}");
  EXPECT_FALSE(jinja::parse_json("{\"a\": }"));
  EXPECT_FALSE(jinja::parse_json(""));
  EXPECT_FALSE(jinja::to_json(Value::undefined("nothing")));
  std::string many = "{";
  for (int i = 0; i < 50'000; ++i)
    many += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":" + std::to_string(i);
  auto large = jinja::parse_json(many + "}");
  ASSERT_TRUE(large);
  EXPECT_EQ(large->find("k49999")->as_int(), 49999);
  EXPECT_EQ(large->find("nope"), nullptr);
}

}  // namespace
}  // namespace tenon
