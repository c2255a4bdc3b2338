// How many processors this process may use, and what they have.
#pragma once

#include <string>

#include "types.h"

namespace rnnfast {

// Those that the scheduler may give it now; at least 1.
Index scheduled_processors();

// The processors' worth of time that control groups (Linux, version 1 or 2) grant it, rounded up: the least of its own
// group and of those around it. 0 where none sets a limit. Files are looked for below `root`, a folder of a test's.
Index granted_processors(const std::string& root = "");

// Bytes of the first core's second cache level; 0 where the system does not say. Files likewise.
Index second_cache_level(const std::string& root = "");

}  // namespace rnnfast
