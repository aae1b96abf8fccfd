// worker/tp/solo_group.h: the group of one rank: every sum is there already.
// Refuses to know: everything. Thread: any. Neighbours: group.h.
#pragma once

#include <memory>

#include "worker/tp/group.h"

namespace phalanx::worker::tp {

std::unique_ptr<Group> MakeSoloGroup();

}  // namespace phalanx::worker::tp
