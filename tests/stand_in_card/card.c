/* The memory of a graphics card, for machines without one: the part of the CUDA runtime (12 and 13) that torch needs
 * to allocate, copy and share, over files in /dev/shm. Preloaded, it comes before libcudart; being called libcuda.so.1,
 * it is taken for the driver too.
 *
 * Each allocation is a file that is named by its owner's process, so another process can map it, the memory in use is
 * that of all processes, and what a dead one had is free again. As on a card, a handle cannot be opened by the process
 * that made it. Nothing is computed: starting a kernel fails, so that what operators.py does not replace is noticed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int status; /* cudaError_t, CUresult */
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, BAD_DEVICE = 101, NO_CONTEXT = 201, NO_KERNEL = 209, UNKNOWN_SYMBOL = 500 };
typedef struct { char bytes[64]; } handle;           /* cudaIpcMemHandle_t, cudaIpcEventHandle_t */
typedef struct { unsigned x, y, z; } dimensions;     /* dim3 */
typedef struct { int type, device; void *on_device, *on_host; } whereabouts; /* cudaPointerAttributes */

#define PREFIX "stand-in-card-"
#define MOST_BLOCKS 65536
#define PAGE 4096

struct block { char *start; size_t size; char name[48]; int foreign; };
static struct block blocks[MOST_BLOCKS];
static int count;
static unsigned made;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread status last;

static status say(status what) { if (what) last = what; return what; }

static size_t total(void) {
    const char *mib = getenv("STAND_IN_CARD_MIB");
    return (size_t)(mib ? strtoull(mib, 0, 10) : 8192) << 20;
}

static size_t in_use(void) {
    size_t sum = 0;
    DIR *folder = opendir("/dev/shm");
    struct dirent *entry;
    while (folder && (entry = readdir(folder))) {
        int pid; unsigned number; size_t size; char path[320];
        if (sscanf(entry->d_name, PREFIX "%d-%u-%zu", &pid, &number, &size) != 3) continue;
        if (kill(pid, 0) && errno == ESRCH) {
            snprintf(path, sizeof path, "/%s", entry->d_name);
            shm_unlink(path);
        } else sum += size;
    }
    if (folder) closedir(folder);
    return sum;
}

static struct block *block_of(const void *pointer) {
    for (int i = 0; i < count; i++)
        if ((char *)pointer >= blocks[i].start && (char *)pointer < blocks[i].start + blocks[i].size) return &blocks[i];
    return 0;
}

static char *map(const char *name, size_t size, int create) {
    int file = shm_open(name, create ? O_CREAT | O_EXCL | O_RDWR : O_RDWR, 0600);
    char *start = MAP_FAILED;
    if (file < 0) return 0;
    if (!create || !ftruncate(file, (off_t)size)) start = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return start == MAP_FAILED ? 0 : start;
}

static void *add(const char *name, size_t size, int foreign) {
    struct block *block = &blocks[count];
    if (count == MOST_BLOCKS) return 0;
    snprintf(block->name, sizeof block->name, "%s", name);
    block->start = map(name, size, !foreign);
    block->size = size;
    block->foreign = foreign;
    if (block->start) count++;
    return block->start;
}

static status drop(void *pointer, int foreign) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(pointer);
    int known = block && block->start == pointer && block->foreign == foreign;
    if (known) {
        munmap(block->start, block->size);
        if (!foreign) shm_unlink(block->name);
        *block = blocks[--count];
    }
    pthread_mutex_unlock(&lock);
    return say(known ? OK : INVALID);
}

__attribute__((destructor)) static void leave(void) {
    for (int i = 0; i < count; i++) if (!blocks[i].foreign) shm_unlink(blocks[i].name);
}

/* Memory */

status cudaMalloc(void **pointer, size_t size) {
    char name[48];
    size_t whole = (size + PAGE - 1) / PAGE * PAGE;
    pthread_mutex_lock(&lock);
    snprintf(name, sizeof name, "/" PREFIX "%d-%u-%zu", getpid(), made++, whole);
    *pointer = in_use() + whole <= total() ? add(name, whole, 0) : 0;
    pthread_mutex_unlock(&lock);
    return say(*pointer ? OK : NO_MEMORY);
}

status cudaFree(void *pointer) { return pointer ? drop(pointer, 0) : OK; }

status cudaMemGetInfo(size_t *free_bytes, size_t *all) {
    size_t used = in_use();
    *all = total();
    *free_bytes = used < *all ? *all - used : 0;
    return OK;
}

status cudaPointerGetAttributes(whereabouts *found, const void *pointer) {
    pthread_mutex_lock(&lock);
    found->type = block_of(pointer) ? 2 : 0; /* device, not registered */
    pthread_mutex_unlock(&lock);
    found->device = 0;
    found->on_device = found->on_host = (void *)pointer;
    return OK;
}

status cudaMemcpy(void *to, const void *from, size_t size, int kind) { (void)kind; memmove(to, from, size); return OK; }
status cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    (void)stream; return cudaMemcpy(to, from, size, kind);
}
status cudaMemset(void *to, int value, size_t size) { memset(to, value, size); return OK; }
status cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
    (void)stream; return cudaMemset(to, value, size);
}
status cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    (void)flags; *pointer = malloc(size ? size : 1); return OK;
}
status cudaFreeHost(void *pointer) { free(pointer); return OK; }
status cudaHostRegister(void *pointer, size_t size, unsigned flags) {
    (void)pointer; (void)size; (void)flags; return OK;
}
status cudaHostUnregister(void *pointer) { (void)pointer; return OK; }
status cudaHostGetDevicePointer(void **device, void *host, unsigned flags) { (void)flags; *device = host; return OK; }

/* Sharing between processes */

status cudaIpcGetMemHandle(handle *out, void *pointer) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(pointer);
    int ours = block && !block->foreign;
    memset(out, 0, sizeof *out);
    if (ours) memcpy(out->bytes, block->name, sizeof block->name);
    pthread_mutex_unlock(&lock);
    return say(ours ? OK : INVALID);
}

status cudaIpcOpenMemHandle(void **pointer, handle given, unsigned flags) {
    int pid; unsigned number; size_t size;
    (void)flags;
    if (sscanf(given.bytes, "/" PREFIX "%d-%u-%zu", &pid, &number, &size) != 3) return say(INVALID);
    if (pid == getpid()) return say(NO_CONTEXT);
    pthread_mutex_lock(&lock);
    *pointer = add(given.bytes, size, 1);
    pthread_mutex_unlock(&lock);
    return say(*pointer ? OK : INVALID);
}

status cudaIpcCloseMemHandle(void *pointer) { return drop(pointer, 1); }
status cudaIpcGetEventHandle(handle *out, void *event) { (void)event; memset(out, 1, sizeof *out); return OK; }
status cudaIpcOpenEventHandle(void **event, handle given) { (void)given; *event = blocks; return OK; }

/* The one device */

status cudaGetDeviceCount(int *number) { *number = 1; return OK; }
status cudaGetDevice(int *device) { *device = 0; return OK; }
status cudaSetDevice(int device) { return say(device ? BAD_DEVICE : OK); }
status cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
status cudaRuntimeGetVersion(int *version) { *version = 12010; return OK; }
status cudaDeviceGetAttribute(int *value, int which, int device) { (void)which; (void)device; *value = 0; return OK; }
status cudaDeviceGetPCIBusId(char *id, int size, int device) {
    (void)device; snprintf(id, (size_t)size, "0000:00:00.0"); return OK;
}
status cudaDeviceCanAccessPeer(int *can, int one, int other) { (void)one; (void)other; *can = 0; return OK; }
status cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -5; return OK; }
status cudaDeviceSynchronize(void) { return OK; }

/* Offsets of cudaDeviceProp in CUDA 12 and 13. */
static status describe(char *about, size_t size, int processors, int threads) {
    int eight = 8, one = 1, warp = 32, most = 2048, block = 1024;
    size_t bytes = total();
    memset(about, 0, size);
    strcpy(about, "stand-in card");
    memcpy(about + 256, "stand-in-card-00", 16);
    memcpy(about + 288, &bytes, sizeof bytes);
    memcpy(about + 308, &warp, sizeof warp);
    memcpy(about + 320, &block, sizeof block);
    memcpy(about + 360, &eight, sizeof eight);
    memcpy(about + processors, &one, sizeof one);
    memcpy(about + threads, &most, sizeof most);
    return OK;
}

status cudaGetDeviceProperties_v2(char *about, int device) { (void)device; return describe(about, 1032, 388, 624); }
status cudaGetDeviceProperties(char *about, int device) { (void)device; return describe(about, 1008, 384, 604); }

/* Errors */

status cudaGetLastError(void) { status found = last; last = OK; return found; }
status cudaPeekAtLastError(void) { return last; }
const char *cudaGetErrorName(status what) {
    return what == NO_MEMORY ? "cudaErrorMemoryAllocation" : "cudaErrorUnknown";
}
const char *cudaGetErrorString(status what) {
    static __thread char text[64];
    if (what == NO_MEMORY) return "out of memory";
    if (what == NO_KERNEL) return "the stand-in card runs no kernels";
    snprintf(text, sizeof text, "error %d of the stand-in card", what);
    return text;
}

/* Streams and events: everything is done when a call returns. */

status cudaStreamCreate(void **stream) { *stream = malloc(8); return OK; }
status cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    (void)flags; (void)priority; return cudaStreamCreate(stream);
}
status cudaStreamGetPriority(void *stream, int *priority) { (void)stream; *priority = 0; return OK; }
status cudaStreamDestroy(void *stream) { free(stream); return OK; }
status cudaStreamSynchronize(void *stream) { (void)stream; return OK; }
status cudaStreamQuery(void *stream) { (void)stream; return OK; }
status cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)stream; (void)event; (void)flags; return OK;
}
status cudaStreamIsCapturing(void *stream, int *is) { (void)stream; *is = 0; return OK; }
status cudaStreamGetCaptureInfo(void *stream, int *is, unsigned long long *id) {
    (void)stream; *is = 0; if (id) *id = 0; return OK;
}
status cudaStreamGetCaptureInfo_v2(void *stream, int *is, unsigned long long *id) {
    return cudaStreamGetCaptureInfo(stream, is, id);
}
status cudaThreadExchangeStreamCaptureMode(int *mode) { (void)mode; return OK; }
status cudaEventCreate(void **event) { *event = blocks; return OK; }
status cudaEventCreateWithFlags(void **event, unsigned flags) { (void)flags; *event = blocks; return OK; }
status cudaEventRecord(void *event, void *stream) { (void)event; (void)stream; return OK; }
status cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    (void)event; (void)stream; (void)flags; return OK;
}
status cudaEventQuery(void *event) { (void)event; return OK; }
status cudaEventSynchronize(void *event) { (void)event; return OK; }
status cudaEventDestroy(void *event) { (void)event; return OK; }
status cudaEventElapsedTime(float *ms, void *from, void *to) { (void)from; (void)to; *ms = 0; return OK; }

/* Kernels */

status cudaLaunchKernel(const void *kernel, dimensions grid, dimensions block, void **values, size_t shared,
                        void *stream) {
    (void)kernel; (void)grid; (void)block; (void)values; (void)shared; (void)stream;
    return say(NO_KERNEL);
}
status __cudaLaunchKernel(void *kernel, dimensions grid, dimensions block, void **values, size_t shared, void *stream) {
    return cudaLaunchKernel(kernel, grid, block, values, shared, stream); /* its name in CUDA 13 */
}
status cudaLaunchKernelExC(const void *how, const void *kernel, void **values) {
    (void)how; (void)kernel; (void)values; return say(NO_KERNEL);
}

/* The driver */

status cuInit(unsigned flags) { (void)flags; return OK; }
status cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    (void)device; if (flags) *flags = 0; *active = 1; return OK;
}
status cuCtxGetCurrent(void **context) { *context = blocks; return OK; }
status cuGetErrorString(status what, const char **text) { *text = cudaGetErrorString(what); return OK; }
status cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                        int *found) {
    (void)version; (void)flags;
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function) *function = (void *)cuInit; /* never called here; torch only wants an address */
    if (found) *found = 0;
    return OK;
}
