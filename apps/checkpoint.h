// Questions about a checkpoint's directory that are answered before anything is started.
#pragma once

#include <string>

#include "tenon/core/status.h"

namespace tenon::apps {

// checkpoints/tiny of the caller's directory, or else of the nearest directory above the program
// that has it: its repository. Where there is none, "checkpoints/tiny", which is then refused by
// that name.
std::string default_model();

// That the directory holds what every checkpoint has, or what is missing.
Status check_checkpoint(const std::string& directory);

// That a team of `size` divides the model, or which sizes do.
Status check_team(const std::string& directory, int size);

}  // namespace tenon::apps
