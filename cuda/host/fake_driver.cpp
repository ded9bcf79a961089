// A stand-in for NVIDIA's driver library, over the CPU's runtime: enough of its interface for
// src/driver, so that contexts, staging, modules, capture, graphs and the handling of faults are
// exercised where there is no GPU. Work runs when it is enqueued, graphs when they are launched.
//
// $FAKE_CUDA_LOSE_AFTER=n: the n-th launch and all that follows fail as after an illegal address.
// $FAKE_CUDA_MEMORY=n: allocations beyond n bytes in all fail. $FAKE_CUDA_NO_GRAPHS: captures fail.
// $FAKE_CUDA_HANG: events never come. $FAKE_CUDA_OLD: images are refused as too new.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "ponder.cuh"

extern "C" int ponder_launch(const char* name, const u32* grid, u32 threads, u32 shared_bytes, void** args, u64 seed, char* error, u32 error_len);

namespace {
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, UNSUPPORTED_PTX = 222, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, NO_CAPTURE = 900 };

struct Config {
    u32 grid[3], block[3], shared;
    void* stream;
    void* attributes;
    u32 count;
};
struct Launch {
    const host::Entry* entry;
    u32 grid[3], threads;
    std::vector<u64> args;
};
typedef std::vector<Launch> Graph;
struct Stream {
    Graph* capture = nullptr;
};

std::map<u64, size_t> allocations;
size_t used = 0;
long long launches = 0;
bool lost = false;
u64 seed = 7;

long long number(const char* name, long long otherwise) {
    const char* text = getenv(name);
    return text ? atoll(text) : otherwise;
}
int run(const Launch& l) {
    if (launches++ >= number("FAKE_CUDA_LOSE_AFTER", 1ll << 60)) lost = true;
    if (lost) return ILLEGAL_ADDRESS;
    std::vector<u64> values = l.args;
    std::vector<void*> pointers;
    for (auto& v : values) pointers.push_back(&v);
    char error[400];
    int code = ponder_launch(l.entry->name, l.grid, l.threads, 0, pointers.data(), ++seed, error, sizeof error);
    if (code) fprintf(stderr, "%s: %s\n", l.entry->name, error);
    return code ? LAUNCH_FAILED : OK;
}
/// Whether [p, p + bytes) lies in one allocation: what a real device would fault on.
bool inside(u64 p, size_t bytes) {
    auto next = allocations.upper_bound(p);
    if (next == allocations.begin()) return false;
    --next;
    return p + bytes <= next->first + next->second;
}
} // namespace

#define API extern "C" __attribute__((visibility("default"))) int
API cuInit(u32) { return OK; }
API cuDriverGetVersion(int* v) { return *v = 13000, OK; }
API cuDeviceGet(int* d, int ordinal) { return *d = 0, ordinal == 0 ? OK : NO_DEVICE; }
API cuDeviceGetName(char* name, int len, int) { return snprintf(name, len, "fake GPU"), OK; }
API cuDeviceGetAttribute(int* v, int which, int) { return *v = which == 75 ? 9 : 0, OK; } // compute 9.0
API cuDevicePrimaryCtxRetain(void** c, int) { return *c = (void*)1, lost = false, OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxSetCurrent(void*) { return OK; }
API cuStreamCreate(Stream** s, u32) { return *s = new Stream, OK; }
API cuStreamDestroy_v2(Stream* s) { return delete s, OK; }
API cuStreamSynchronize(Stream*) { return lost ? ILLEGAL_ADDRESS : OK; }
API cuStreamBeginCapture_v2(Stream* s, int) {
    if (getenv("FAKE_CUDA_NO_GRAPHS")) return NO_CAPTURE;
    return s->capture = new Graph, OK;
}
API cuStreamEndCapture(Stream* s, Graph** g) { return *g = s->capture, s->capture = nullptr, OK; }
API cuGraphInstantiateWithFlags(Graph** e, Graph* g, u64) { return *e = new Graph(*g), OK; }
API cuGraphDestroy(Graph* g) { return delete g, OK; }
API cuGraphExecDestroy(Graph* g) { return delete g, OK; }
API cuGraphLaunch(Graph* g, Stream*) {
    for (auto& l : *g)
        if (int code = run(l)) return code;
    return OK;
}
API cuEventCreate(void** e, u32) { return *e = malloc(1), OK; }
API cuEventDestroy_v2(void* e) { return free(e), OK; }
API cuEventRecord(void*, Stream*) { return lost ? ILLEGAL_ADDRESS : OK; }
API cuEventQuery(void*) { return getenv("FAKE_CUDA_HANG") ? NOT_READY : lost ? ILLEGAL_ADDRESS : OK; }
API cuEventElapsedTime(float* ms, void*, void*) { return *ms = 1.0f, OK; }
API cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = number("FAKE_CUDA_MEMORY", 8ll << 30);
    return *free = *total - used, OK;
}
API cuMemAlloc_v2(u64* p, size_t bytes) {
    if (used + bytes > (size_t)number("FAKE_CUDA_MEMORY", 8ll << 30)) return OUT_OF_MEMORY;
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes)) return OUT_OF_MEMORY;
    memset(memory, 0xFF, bytes);
    used += bytes;
    return *p = (u64)memory, allocations[*p] = bytes, OK;
}
API cuMemFree_v2(u64 p) {
    auto found = allocations.find(p);
    if (found == allocations.end()) return INVALID_VALUE;
    used -= found->second;
    allocations.erase(found);
    return free((void*)p), OK;
}
API cuMemHostAlloc(void** p, size_t bytes, u32) { return *p = malloc(bytes), OK; }
API cuMemFreeHost(void* p) { return free(p), OK; }
API cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t n, Stream*) { return lost ? ILLEGAL_ADDRESS : inside(to, n) ? memcpy((void*)to, from, n), OK : INVALID_VALUE; }
API cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t n, Stream*) { return lost ? ILLEGAL_ADDRESS : inside(from, n) ? memcpy(to, (void*)from, n), OK : INVALID_VALUE; }
API cuModuleLoadData(void** m, const void* image) {
    if (getenv("FAKE_CUDA_OLD")) return UNSUPPORTED_PTX;
    return *m = (void*)image, OK;
}
API cuModuleUnload(void*) { return OK; }
API cuModuleGetFunction(const host::Entry** f, void*, const char* name) {
    *f = host::Entry::first;
    while (*f && strcmp((*f)->name, name)) *f = (*f)->next;
    return *f ? OK : NOT_FOUND;
}
API cuLaunchKernelEx(const Config* config, const host::Entry* entry, void** args, void**) {
    Launch launch = {entry, {config->grid[0], config->grid[1], config->grid[2]}, config->block[0], {}};
    for (u32 i = 0; i < entry->params; i++) launch.args.push_back(*(u64*)args[i]);
    Stream* stream = (Stream*)config->stream;
    if (stream->capture) return stream->capture->push_back(launch), OK;
    return run(launch);
}
