# XGrammar, the library behind answers that keep to a grammar (docs/adr/0056). Debian has no package of it:
# it is compiled from the source archive that PyPI has, pinned by its hash. Defines the target
# tenon_xgrammar and TENON_HAS_XGRAMMAR where that is possible.
set(TENON_XGRAMMAR "auto" CACHE STRING "Grammars for answers: auto (where the archive can be had), on, off")
set(TENON_XGRAMMAR_ARCHIVE "" CACHE FILEPATH "XGrammar's source archive, where it is not to be fetched")
set(TENON_HAS_XGRAMMAR OFF)
if(TENON_XGRAMMAR STREQUAL "off")
  return()
endif()

set(version 0.2.8)
set(hash 8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80)
set(address https://files.pythonhosted.org/packages/03/0f/29f521535729be740779c2c98b630ef6607cf28be9b669895dd2b821ff63/xgrammar-${version}.tar.gz)
set(folder ${PROJECT_BINARY_DIR}/third_party)
file(SHA256 ${CMAKE_CURRENT_LIST_FILE} recipe)  # another recipe, another folder
string(SUBSTRING ${recipe} 0 8 recipe)
set(root ${folder}/xgrammar-${version}-${recipe})

# Replaces text in one of its files, where it must stand `times` times.
function(tenon_mend_xgrammar file times from to)
  file(READ ${folder}/unpacked/xgrammar-${version}/cpp/${file} source)
  string(REPLACE "${from}" "" without "${source}")
  string(LENGTH "${source}" before)
  string(LENGTH "${without}" after)
  string(LENGTH "${from}" each)
  math(EXPR found "(${before} - ${after}) / ${each}")
  if(NOT found EQUAL times)
    message(FATAL_ERROR "XGrammar's ${file} has ${found} of the ${times} places that cmake/xgrammar.cmake mends: ${from}")
  endif()
  string(REPLACE "${from}" "${to}" mended "${source}")
  file(WRITE ${folder}/unpacked/xgrammar-${version}/cpp/${file} "/* changed by tenon: cmake/xgrammar.cmake */ ${mended}")
endfunction()

# Unpacked beside its final place and then renamed: what stands there is whole.
function(tenon_fetch_xgrammar)
  set(archive ${TENON_XGRAMMAR_ARCHIVE})
  if(NOT archive)
    set(archive ${folder}/xgrammar-${version}.tar.gz)
    message(STATUS "Fetching XGrammar ${version}")
    file(DOWNLOAD ${address} ${archive} TIMEOUT 120 INACTIVITY_TIMEOUT 20 STATUS status)
    list(GET status 0 failed)
    if(failed)
      list(GET status 1 why)
      file(REMOVE ${archive})
      set(TENON_XGRAMMAR_WHY "the archive cannot be fetched (${why})" PARENT_SCOPE)
      return()
    endif()
  endif()
  file(SHA256 ${archive} found)
  if(NOT found STREQUAL hash)
    message(FATAL_ERROR "XGrammar's archive ${archive} has the SHA-256 ${found}; accepted is ${hash}")
  endif()
  file(REMOVE_RECURSE ${folder}/unpacked)
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${folder}/unpacked
       PATTERNS "*/cpp/*" "*/include/*" "*/3rdparty/picojson/*" "*/3rdparty/dlpack/include/*" "*/LICENSE" "*/NOTICE")
  # Strings with a minLength or maxLength would take control characters, which JSON's strings cannot have.
  tenon_mend_xgrammar(json_schema_converter.cc 1 "{'\\r', '\\r'}, {'\\n', '\\n'}}, true)" "{0, 0x1f}}, true)")
  # A value in a call has one line end on each side, which belong to its tags; any white space there would be a
  # part of a string, past its maxLength and its pattern.
  tenon_mend_xgrammar(converter_ext/qwen.cc 1 [["<parameter=", ">", "", "</parameter>"]]
                      [["<parameter=", ">\n", "", "\n</parameter>"]])
  tenon_mend_xgrammar(json_schema_converter.cc 1 "string_excludes.push_back(xml_wrapper_.parameter_suffix)"
                      "string_excludes.push_back(xml_wrapper_.parameter_suffix.substr(\n      xml_wrapper_.parameter_suffix.find_first_not_of('\\n')))")
  tenon_mend_xgrammar(json_schema_converter.cc 2 [[      elements.push_back(WhitespaceExpression());
      elements.push_back(RuleRef(value_rule_id));
      elements.push_back(WhitespaceExpression());
]] [[      elements.push_back(RuleRef(value_rule_id));
]])
  # A grammar that anybody may send must not keep a thread busy for minutes: its parser counts what it does, and
  # gives up where that was more than was allowed (tenon/text/grammar_effort.h).
  tenon_mend_xgrammar(earley_parser.cc 1 "#include <utility>"
                      "#include <utility>\n#include \"tenon/text/grammar_effort.h\"\nusing tenon::grammar_effort::spend;")
  tenon_mend_xgrammar(earley_parser.cc 2 "  for (const auto& state : latest_states) {"
                      "  spend(latest_states.size());\n  for (const auto& state : latest_states) {")
  tenon_mend_xgrammar(earley_parser.cc 3 "    tmp_process_state_queue_.pop();"
                      "    tmp_process_state_queue_.pop();\n    spend(1);")
  tenon_mend_xgrammar(earley_parser.cc 1 "  for (const auto& [ref_id, parent_state] : parent_states_map) {"
                      "  spend(parent_states_map.size());\n  for (const auto& [ref_id, parent_state] : parent_states_map) {")
  tenon_mend_xgrammar(earley_parser.cc 2 "const auto& parent_state = parent_state_iter.second;"
                      "const auto& parent_state = parent_state_iter.second;\nspend(rule_id_to_completable_states_.Back().size());")
  # So does what it prepares a grammar with, where that may take long.
  tenon_mend_xgrammar(earley_parser.cc 1 "  PushStateAndExpand(initial_state.has_value() ?"
                      "  spend(grammar_->NumRules() / 4);\n  PushStateAndExpand(initial_state.has_value() ?")
  tenon_mend_xgrammar(grammar_functor.cc 2 "    for (const auto& [hash, target] : hash_and_target) {"
                      "    spend(hash_and_target.size());\n    for (const auto& [hash, target] : hash_and_target) {")
  tenon_mend_xgrammar(grammar_functor.cc 1 "#include <vector>"
                      "#include <vector>\n#include \"tenon/text/grammar_effort.h\"\nusing tenon::grammar_effort::spend;")
  tenon_mend_xgrammar(fsm.cc 1 "  std::vector<std::vector<FSMEdge>> new_edges(new_num_states);\n  for (int i = 0; i < static_cast<int>(edges_.size()); ++i) {"
                      "  spend(8 * edges_.size());\n  std::vector<std::vector<FSMEdge>> new_edges(new_num_states);\n  for (int i = 0; i < static_cast<int>(edges_.size()); ++i) {")
  tenon_mend_xgrammar(fsm.cc 1 "#include <vector>"
                      "#include <vector>\n#include \"tenon/text/grammar_effort.h\"\nusing tenon::grammar_effort::spend;")
  # The threads of a compilation count together, and where that was too much what is left of it is passed over.
  tenon_mend_xgrammar(grammar_compiler.cc 1 "  auto add_adaptive_token_mask = [&](const ParserState& state, bool is_root_rule) {"
                      "  tenon::grammar_effort::Compilation* const counted = tenon::grammar_effort::account.compilation;
  auto add_adaptive_token_mask = [&, counted](const ParserState& state, bool is_root_rule) {
    if (counted->is_over()) return;
    const tenon::grammar_effort::OnThread counts(counted);")
  tenon_mend_xgrammar(grammar_compiler.cc 1 "    thread_pool->Join();" "    thread_pool->Join();\n    counted->spend(0);")
  tenon_mend_xgrammar(grammar_compiler.cc 1 "#include <variant>"
                      "#include <variant>\n#include \"tenon/text/grammar_effort.h\"")
  # Who asks for a grammar that another thread compiles would wait for that thread, and get what stopped it. And its
  # cache keeps to its bound: what could not be compiled is not kept, and what is too much goes at once. Its own sizes
  # leave out keys, names, the nodes of tables and the room that vectors grow into.
  tenon_mend_xgrammar(support/thread_safe_cache.h 1 [[
    auto task = std::packaged_task<SizedValue()>{[this, &key] {
      auto value = computer_(key);
      auto result = SizedValue{value, size_estimator_(value)};
      current_size_ += result.size;
      return result;
    }};

    auto lock_map = std::unique_lock{map_mutex_};
    auto [it, success] = map.try_emplace(key);
    if (!success) return cache_.LRUVisit(*it);

    // in this case, we insert the task, and we need to compute the value
    auto future = task.get_future().share();

    // perform eviction if the cache is full
    cache_.LRUInit(*it, future);
    cache_.LRUEvict(
        [&] { return current_size_ > max_size_; },
        [&](const std::shared_future<SizedValue>& value) {
          using namespace std::chrono_literals;
          // if not ready, then do not wait and block here
          if (value.wait_for(0s) != std::future_status::ready) return false;
          try {
            current_size_ -= value.get().size;
          } catch (...) {
            // fine, just ignore the exception, size is not updated
          }
          return true;
        }
    );

    // perform the costly computation outside all locks
    lock_map.unlock();
    task();
    return future;
]] [[
    auto value = computer_(key);
    const std::size_t size = size_estimator_(key, value);
    std::promise<SizedValue> made;
    made.set_value({value, size});
    const auto future = made.get_future().share();

    auto lock_map = std::unique_lock{map_mutex_};
    auto [it, success] = map.try_emplace(key);
    if (!success) return cache_.LRUVisit(*it);
    current_size_ += size;
    cache_.LRUInit(*it, future);
    cache_.LRUEvict(
        [&] { return current_size_ > max_size_; },
        [&](const std::shared_future<SizedValue>& each) {
          current_size_ -= each.get().size;
          return true;
        }
    );
    return future;
]])
  tenon_mend_xgrammar(support/thread_safe_cache.h 1 "size_estimator_(value)" "size_estimator_(key, value)")
  tenon_mend_xgrammar(grammar_compiler.cc 1
    "std::size_t operator()(const CompiledGrammar& value) const { return value.MemorySizeBytes(); }" [[
    std::size_t operator()(const UnionKey& key, const CompiledGrammar& value) const {
      const Grammar& grammar = value->grammar;
      std::size_t size = 4096 + value.MemorySizeBytes() + MemorySize(grammar);
      size += 256 * value->adaptive_token_mask_cache.size();
      for (int i = 0; i < grammar->NumRules(); ++i) size += 256 + grammar->GetRule(i).name.capacity();
      for (const auto& states : grammar->per_rule_fsm_new_state_ids) size += 8 * states.capacity();
      if (const auto* tag = std::get_if<StructuralTagKey>(&key)) size += tag->structural_tag_json.capacity();
      return size;
    }]])
  tenon_mend_xgrammar(grammar_functor.cc 1 "class RuleLevelCache::Impl {"
                      "static size_t TenonEntrySize(const AdaptiveTokenMask& mask) { return 512 + MemorySize(mask); }\n\nclass RuleLevelCache::Impl {")
  tenon_mend_xgrammar(grammar_functor.cc 2 "MemorySize(token_mask)" "TenonEntrySize(token_mask)")
  tenon_mend_xgrammar(grammar_functor.cc 1 "MemorySize(oldest_it->second)" "TenonEntrySize(oldest_it->second)")
  tenon_mend_xgrammar(grammar_functor.cc 1 "MemorySize(new_it->second)" "TenonEntrySize(new_it->second)")
  tenon_mend_xgrammar(support/container.h 1 "    node_pool_.Deallocate(node);"
                      "    node_pool_[node].value = Value();\n    node_pool_.Deallocate(node);")
  file(RENAME ${folder}/unpacked/xgrammar-${version} ${root})
endfunction()

if(NOT EXISTS ${root}/include/xgrammar/xgrammar.h)
  tenon_fetch_xgrammar()
endif()
if(NOT EXISTS ${root}/include/xgrammar/xgrammar.h)
  if(TENON_XGRAMMAR STREQUAL "on")
    message(FATAL_ERROR "XGrammar: ${TENON_XGRAMMAR_WHY}; TENON_XGRAMMAR_ARCHIVE names a file instead")
  endif()
  message(WARNING "Built without grammars: ${TENON_XGRAMMAR_WHY}. TENON_XGRAMMAR_ARCHIVE names a file instead; "
                  "TENON_XGRAMMAR=off silences this.")
  return()
endif()

file(GLOB xgrammar_sources ${root}/cpp/*.cc ${root}/cpp/converter_ext/*.cc ${root}/cpp/support/*.cc)
add_library(tenon_xgrammar STATIC ${xgrammar_sources})
set_target_properties(tenon_xgrammar PROPERTIES EXPORT_NAME xgrammar CXX_STANDARD 17)
target_include_directories(tenon_xgrammar PRIVATE ${PROJECT_SOURCE_DIR})
target_include_directories(tenon_xgrammar SYSTEM PRIVATE ${root}/include ${root}/3rdparty/picojson
                                                         ${root}/3rdparty/dlpack/include)
target_compile_definitions(tenon_xgrammar PRIVATE XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
# Others' code: its warnings are not ours to mend, and only its memory and its races are watched.
target_compile_options(tenon_xgrammar PRIVATE -O2 -w)
if(TENON_SANITIZE)
  target_compile_options(tenon_xgrammar PRIVATE -fno-sanitize=undefined)
endif()
install(TARGETS tenon_xgrammar EXPORT tenon-targets)
set(TENON_HAS_XGRAMMAR ON)
set(TENON_XGRAMMAR_INCLUDES ${root}/include ${root}/3rdparty/dlpack/include)
