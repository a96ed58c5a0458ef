// tenon eval gsm8k.
#pragma once

#include "apps/commands.h"

namespace tenon::apps {

Command add_eval_gsm8k(CLI::App& eval);

}  // namespace tenon::apps
