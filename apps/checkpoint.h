// Questions about a checkpoint's directory that are answered before anything is started.
#pragma once

#include <string>

#include "tenon/core/status.h"
#include "tenon/models/load_format.h"
#include "tenon/models/qwen3_5/config.h"

namespace CLI {
class App;
}

namespace tenon::apps {

// What help and the manual call the default: no place of the machine that built them.
inline constexpr const char* kDefaultModel = "checkpoints/tiny";
// checkpoints/tiny of the caller's directory, or else of the nearest directory above the program
// that has it: its repository. Where there is none, "checkpoints/tiny", which is then refused by
// that name.
std::string default_model();

// That the model, a directory, holds what every checkpoint has, or what is missing. With made
// weights that is config.json alone, which may be named itself.
Status check_checkpoint(const std::string& model, LoadFormat format);

// That the model's directory holds safetensors; that it holds a tokenizer.json.
bool has_weights(const std::string& model);
bool has_tokenizer(const std::string& model);

// That a team of `size` divides the model, or which sizes do.
Status check_team(const std::string& model, int size);

// The name of the model's directory, for reports. What its config.json says.
std::string model_name(const std::string& model);
Result<qwen3_5::Config> config_of(const std::string& model);

// The ids that the config has rows for; the longest context that it allows, in tokens.
Result<int> vocabulary_of(const std::string& model);
Result<int> context_of(const std::string& model);

// That --weights-seed is given for made weights alone.
Status check_weights(const WeightsFrom& weights);

// Adds --load-format and --weights-seed.
void add_weights_options(CLI::App& app, WeightsFrom& weights);

}  // namespace tenon::apps
