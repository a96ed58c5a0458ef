// Options of a verb from a file: --config FILE.
#pragma once

namespace CLI {
class App;
}

namespace tenon::apps {

// Adds --config FILE to a verb. Before its other options: those that the command line does not name
// are then read from the file before they are looked at. One `name = value` in each line, as long
// options without their dashes (`api-key-file = keys.txt`); flags are `true` or `false`, an option
// that may be given again has a list (`["a", "b"]`), '#' begins a comment.
void add_config_option(CLI::App& verb);

}  // namespace tenon::apps
