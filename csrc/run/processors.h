// How many processors this process may use, and what they have.
#pragma once

#include <string>

#include "types.h"

namespace rnnfast {

// Processors that the scheduler may run this process on; at least 1.
Index scheduled_processors();

// How many processors' time the control groups (Linux, version 1 or 2) of this process grant it, rounded up: the
// smallest limit of its own group and those above. 0 if there is no limit. Tests pass a folder of files as `root`.
Index granted_processors(const std::string& root = "");

// Size in bytes of the second cache level of the first core; 0 if the system does not tell. `root` is as above.
Index second_cache_level(const std::string& root = "");

}  // namespace rnnfast
