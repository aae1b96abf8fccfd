// worker/tp/gloo_group.h: sums and gathers of CPU ranks over TCP, with Gloo's connections and our own order of sums.
// Refuses to know: what is summed. Thread: the engine's; Gloo's event thread only connects. No exception leaves gloo_group.cc.
// Neighbours: group.h; reduce.h adds; control.h gives the store for the addresses and the verdict.
//
// Every rank has a connection to every other one, in Gloo's synchronous mode: the calling thread reads and writes the sockets itself, in
// rounds: a piece to every peer, then a piece from every peer.
//   one-shot  each rank sends all of its tensor to all, and adds up all. One hop.
//   two-shot  each rank adds up its part of the tensor and sends the sum to all. Two hops, 2 (n - 1) / n tensors sent instead of n - 1.
// Both add in the order of ranks, so the choice (TwoShot) is a matter of time only.
// A peer that died is known at once by its socket, a silent one after `collective_timeout_ms`. Connecting takes at most five times that.
// Gloo's connections carry no proof of their own; their addresses go only to ranks that have given one.
//
// Why not Gloo's own all-reduce: it adds in the order of its ring or cube, has no bf16, and passes every message through its event thread.
// Medians in us of tp_bench: processes over loopback, f32, 2 cores of a virtual AVX2 machine that others used too. Gloo: its better
// algorithm (cube), same hour; in busier minutes it lost whole time slices (4 ms) to the thread hop. shm: the same exchange through shared
// memory between spinning ranks, tried and not built; with 2 ranks from a quiet minute.
//   bytes         1 KiB   4 KiB  16 KiB  64 KiB  256 KiB   1 MiB
//   2 ranks here     34      25      44      77      339    1144
//   2 ranks Gloo    194     193     334     318      370    3713
//   2 ranks shm       1       4      10      41      169     662
//   4 ranks here    107     134     168     313      865    3698
//   4 ranks Gloo    702     799     789     894     1611    3094
//   4 ranks shm      20      37      94     417     1430    4096   one hop; two would halve the large ones
#pragma once

#include <memory>

#include "worker/tp/group.h"

namespace phalanx::worker::tp {

// Ranks write a piece to all before they read one, so it must fit the socket buffers: Linux gives a connection 128 KiB to receive, half of
// it usable, and more to send. Above one loopback segment (64 KiB) a sender was seen to wait 40 ms for a delayed acknowledgement.
constexpr size_t kPieceBytes = 32 << 10;

// Whether a sum of so many bytes over `size` ranks goes in two hops.
bool TwoShot(int size, size_t bytes);

// Ignores SIGPIPE in this process: Gloo writes to sockets whose peer may be gone. Errors: kUnavailable naming what failed, the verdict.
absl::StatusOr<std::unique_ptr<Group>> MakeGlooGroup(Control& control, const GroupOptions& options);

}  // namespace phalanx::worker::tp
