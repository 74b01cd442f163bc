// Work that is put off until somebody waits for it, as a slow GPU does (STAND_IN_LATE); in the order
// in which it came, whatever the stream.
#pragma once
#include "memory.h"
#include <deque>

struct Late {
    std::mutex lock;
    std::deque<std::function<void()>> work;
    u64 taken = 0, done = 0;
    std::map<u64, u64> pinned; // start -> size
};
// Never taken down: burn's threads outlive the program's end.
static Late &late = *new Late;

// Does `work` on a device, or takes it up for later; how much has been taken up with it.
static u64 put_off(int on, std::function<void()> work) {
    auto there = [=, work = std::move(work)] {
        int here = std::exchange(device, on);
        work();
        device = here;
    };
    if (!LATE) {
        there();
        return 0;
    }
    std::lock_guard l(late.lock);
    late.work.push_back(std::move(there));
    return ++late.taken;
}
// Does what was taken up, up to the piece of that number.
static void catch_up(u64 number = ~0ull) {
    std::lock_guard l(late.lock);
    for (; late.done < number && !late.work.empty(); late.done++) {
        late.work.front()();
        late.work.pop_front();
    }
}
// Whether a copy goes on while the host does: other memory the driver copies before it returns.
static bool is_pinned(const void *p) {
    std::lock_guard l(late.lock);
    auto found = late.pinned.upper_bound((u64)p);
    return found != late.pinned.begin() && (u64)p < std::prev(found)->first + std::prev(found)->second;
}
