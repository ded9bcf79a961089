// Runs a kernel's grid on one CPU thread: blocks in turn, each CUDA thread a fiber.
//
// The scheduler sweeps the live fibers in a seeded order and resumes those whose wait is over. A
// barrier is a count and a generation; a fiber that returns lowers the count, as on a GPU. A sweep
// that resumes nobody while fibers live is a deadlock: an error that names the block. Shared memory
// is poisoned before each block, so that reading what nobody wrote shows.
//
// Asynchronous copies land in one of two orders: at once where the launch's seed is even (which finds a
// slot refilled too early), and where it is odd as late as they may (which finds data read before it came):
// bulk copies when no fiber can go on, a thread's own when it waits for them.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "ponder.cuh"
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace host {
thread_local Here here;
Entry* Entry::first = nullptr;

namespace {
const size_t STACK = 128 << 10;

#if defined(__x86_64__)
// Saves what the ABI asks a callee to save, swaps stacks, returns on the other side.
extern "C" void ponder_switch(void** save, void* load);
asm(R"(
.text
.globl ponder_switch
.hidden ponder_switch
ponder_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
struct Context {
    void* sp = nullptr;
    void start(u8* stack, void (*entry)()) {
        void** top = (void**)(stack + STACK);
        *--top = nullptr; // keeps the stack aligned as after a call
        *--top = (void*)entry;
        for (int i = 0; i < 6; i++) *--top = nullptr;
        sp = top;
    }
    static void go(Context& from, Context& to) { ponder_switch(&from.sp, to.sp); }
};
#else
struct Context {
    ucontext_t context;
    void start(u8* stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    static void go(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

/// A copy on its way.
struct OwnCopy {
    void* to;
    const void* from;
    u32 bytes;
    void land() const { memcpy(to, from, bytes); }
};
struct Fiber {
    Context context;
    u32 thread = 0;
    const u32* word = nullptr; // waits while *word == value
    u32 value = 0;
    bool done = false;
    std::vector<OwnCopy> copies; // that it has not waited for
};
struct Warp {
    u32 live = 0, arrived = 0, generation = 0, op = 0;
    u32 alive = 0;               // mask of lanes that have not returned
    u32 lanes[2][32][16] = {};   // deposits, by parity of the generation
};
/// An mbarrier: arrivals and bytes still to come in this phase.
struct Barrier {
    u32 pending, expected, phase;
    long long bytes;
    void flip_if_complete() {
        if (pending == 0 && bytes == 0) phase ^= 1, pending = expected;
    }
};
struct Copy {
    void* to;
    const void* from;
    u32 bytes;
    Barrier* barrier;
    void land() const {
        memcpy(to, from, bytes);
        barrier->bytes -= bytes;
        barrier->flip_if_complete();
    }
};
struct Shared {
    const void* site;
    std::vector<U32x4> words;
};

/// Everything of the launch under way. One at a time: a lock is held around it.
struct Launch {
    Context scheduler;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    u32 live = 0, arrived = 0, generation = 0; // the block's barrier
    Fiber* current = nullptr;
    std::vector<Shared> shared;
    std::vector<U32x4> dynamic;
    std::map<const void*, Barrier> barriers;
    std::vector<Copy> copies; // on their way
    bool late = false;
    const Entry* entry = nullptr;
    void** args = nullptr;
    u8* stacks = nullptr;
    u32 stack_count = 0;
    std::string error;
} launch;

void poison(std::vector<U32x4>& words) {
    for (auto& w : words) w = {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}; // NaN as float and as f16
}
void yield() { Context::go(launch.current->context, launch.scheduler); }
void wait_while(const u32* word, u32 value) {
    launch.current->word = word;
    launch.current->value = value;
    yield();
}
void release_if_full(Warp& w, void (*finish)(u32 (*)[16])) {
    if (w.arrived == 0 || w.arrived < w.live) return;
    if (finish) finish(w.lanes[w.generation & 1]);
    w.arrived = 0;
    w.generation++;
}
void fiber_main() {
    launch.entry->call(launch.args);
    Fiber& self = *launch.current;
    self.done = true;
    if (!self.copies.empty()) fault("a thread returned before it waited for its copies");
    Warp& w = launch.warps[self.thread / 32];
    w.live--;
    w.alive &= ~(1u << self.thread % 32);
    if (w.arrived && w.arrived == w.live) fault("a thread returned while its warp met at an operation");
    launch.live--;
    if (launch.arrived && launch.arrived == launch.live) launch.arrived = 0, launch.generation++;
    yield();
    abort(); // a finished fiber is never resumed
}
bool need_stacks(u32 count) {
    if (count <= launch.stack_count) return true;
    if (launch.stacks) munmap(launch.stacks, STACK * launch.stack_count);
    void* p = mmap(nullptr, STACK * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    launch.stack_count = p == MAP_FAILED ? 0 : count;
    launch.stacks = p == MAP_FAILED ? nullptr : (u8*)p;
    // The lowest page of each stack faults, instead of growing into a neighbour.
    for (u32 i = 0; i < launch.stack_count; i++) mprotect(launch.stacks + STACK * i, 4096, PROT_NONE);
    return launch.stacks != nullptr;
}
u32 coprime_step(u32 count, u64 random) {
    for (u32 step = (u32)(random % count) | 1;; step += 2) {
        u32 a = step, b = count;
        while (b) { u32 r = a % b; a = b; b = r; }
        if (a == 1) return step;
    }
}
/// Runs the present block to its end; false on a fault.
bool run_block(u32 threads, u64& random) {
    launch.fibers.assign(threads, Fiber());
    launch.warps.assign((threads + 31) / 32, Warp());
    launch.live = threads;
    launch.arrived = launch.generation = 0;
    launch.shared.clear();
    launch.barriers.clear();
    launch.copies.clear();
    poison(launch.dynamic);
    for (u32 t = 0; t < threads; t++) {
        Warp& w = launch.warps[t / 32];
        w.live++;
        w.alive |= 1u << t % 32;
        launch.fibers[t].thread = t;
        launch.fibers[t].context.start(launch.stacks + STACK * t, fiber_main);
    }
    u32 left = threads;
    while (left) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        u32 step = coprime_step(threads, random >> 33), at = (u32)((random >> 20) % threads);
        bool progress = false;
        for (u32 i = 0; i < threads; i++, at = (u32)(((u64)at + step) % threads)) {
            Fiber& fiber = launch.fibers[at];
            if (fiber.done || (fiber.word && *fiber.word == fiber.value)) continue;
            fiber.word = nullptr;
            launch.current = &fiber;
            here.thread = {at, 0, 0};
            here.lane = at % 32;
            Context::go(launch.scheduler, fiber.context);
            if (!launch.error.empty()) return false;
            progress = true;
            left -= fiber.done;
        }
        if (!progress && !launch.copies.empty()) {
            size_t i = (random >> 40) % launch.copies.size(); // in any order
            Copy copy = launch.copies[i];
            launch.copies.erase(launch.copies.begin() + i);
            copy.land();
            continue;
        }
        if (!progress) {
            char text[160];
            snprintf(text, sizeof text, "deadlock in block (%u, %u, %u): %u threads live, %u at the block's barrier",
                     here.block.x, here.block.y, here.block.z, launch.live, launch.arrived);
            launch.error = text;
            return false;
        }
    }
    return true;
}
} // namespace

void fault(const char* format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n > 0 && n < 300)
        snprintf(text + n, sizeof text - n, ", thread %u of block (%u, %u, %u)", here.thread.x, here.block.x, here.block.y, here.block.z);
    launch.error = text;
    for (;;) yield();
}
void block_barrier() {
    u32 generation = launch.generation;
    if (++launch.arrived == launch.live) {
        launch.arrived = 0;
        launch.generation++;
    } else {
        wait_while(&launch.generation, generation);
    }
}
const u32 (*meet(WarpOp op, const u32* words, u32 count, void (*finish)(u32 (*)[16])))[16] {
    Fiber& self = *launch.current;
    Warp& w = launch.warps[self.thread / 32];
    u32 lane = self.thread % 32, generation = w.generation;
    if (w.arrived == 0) w.op = op;
    if (w.op != op) fault("lanes of a warp meet at different operations (%u and %u)", w.op, (u32)op);
    if (op != SYNC && w.alive != 0xFFFFFFFF) fault("a warp operation with some lanes gone (mask %08x)", w.alive);
    u32(*table)[16] = w.lanes[generation & 1];
    for (u32 i = 0; i < count; i++) table[lane][i] = words[i];
    w.arrived++;
    release_if_full(w, finish);
    if (w.generation == generation) wait_while(&w.generation, generation);
    return table;
}
void* shared_array(const void* site, size_t bytes) {
    for (auto& s : launch.shared)
        if (s.site == site) return s.words.data();
    launch.shared.push_back({site, std::vector<U32x4>((bytes + 15) / 16)});
    poison(launch.shared.back().words);
    return launch.shared.back().words.data();
}
void barrier_init(const void* bar, u32 count) { launch.barriers[bar] = {count, count, 0, 0}; }
static Barrier& barrier_at(const void* bar) {
    auto found = launch.barriers.find(bar);
    if (found == launch.barriers.end()) fault("an mbarrier that was never initialised");
    return found->second;
}
void barrier_arrive(const void* bar, u32 bytes) {
    Barrier& b = barrier_at(bar);
    if (b.pending == 0) fault("one arrival too many at an mbarrier");
    b.pending--;
    b.bytes += bytes;
    b.flip_if_complete();
}
void barrier_wait(const void* bar, u32 parity) {
    Barrier& b = barrier_at(bar);
    if (b.phase == parity) wait_while(&b.phase, parity);
}
void copy_async(void* to, const void* from, u32 bytes, const void* bar) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16) fault("a bulk copy that is not in units of 16 bytes");
    Copy copy = {to, from, bytes, &barrier_at(bar)};
    if (launch.late) launch.copies.push_back(copy);
    else copy.land();
}
void copy_own(void* to, const void* from, u32 bytes) {
    OwnCopy copy = {to, from, bytes};
    if (launch.late) launch.current->copies.push_back(copy);
    else copy.land();
}
void wait_for_own() {
    for (auto& copy : launch.current->copies) copy.land();
    launch.current->copies.clear();
}
u8* dynamic_shared() { return (u8*)launch.dynamic.data(); }
} // namespace host

/// Runs kernel `name`. 0: done; 1: no such kernel; 2: fault or deadlock, in words in `error`.
extern "C" int ponder_launch(const char* name, const u32* grid, u32 threads, u32 shared_bytes, void** args, u64 seed, char* error, u32 error_len) {
    using namespace host;
    static std::mutex lock;
    std::lock_guard<std::mutex> guard(lock);
    const Entry* entry = Entry::first;
    while (entry && strcmp(entry->name, name)) entry = entry->next;
    if (!entry) return 1;
    launch.entry = entry;
    launch.args = args;
    launch.error.clear();
    launch.late = seed & 1;
    launch.dynamic.resize((shared_bytes + 15) / 16);
    if (!need_stacks(threads)) launch.error = "no memory for the stacks of the fibers";
    here.block_dim = {threads, 1, 1};
    here.grid_dim = {grid[0], grid[1], grid[2]};
    u64 random = seed * 0x9E3779B97F4A7C15ull + 1;
    for (u32 z = 0; z < grid[2] && launch.error.empty(); z++)
        for (u32 y = 0; y < grid[1] && launch.error.empty(); y++)
            for (u32 x = 0; x < grid[0] && launch.error.empty(); x++) {
                here.block = {x, y, z};
                run_block(threads, random);
            }
    if (launch.error.empty()) return 0;
    snprintf(error, error_len, "%s", launch.error.c_str());
    return 2;
}
