/* A PCIe endpoint with PASIDs, a translation cache (ATS) and page requests (PRI), made of one that QEMU has. */
#ifndef PORTCULLIS_ENDPOINT_H
#define PORTCULLIS_ENDPOINT_H

#include <pthread.h>
#include "qemu.h"

/* What the capabilities say. */
#define PASID_WIDTH 20
#define PAGE_REQUEST_CAPACITY 32

#define MAX_SPACES 64
#define CACHE_SIZE 64
/* More than a flood brings. */
#define LIST_SIZE 1024

struct endpoint;

/* What an endpoint keeps for each PASID that it has used. */
struct space {
    /* First, so that QEMU's pointers to these are pointers to the space. */
    IOMMUNotifier invalidations;
    IOMMUPRINotifier responses;
    struct endpoint *owner;
    uint32_t pasid;
    AddressSpace *memory;
    bool hears_invalidations, hears_responses;
};

/* A translation in the endpoint's cache; invalid where `size` is 0. */
struct translation {
    uint32_t pasid;
    uint64_t address, translated, size;
    int permission;
    AddressSpace *target;
};

/* A range that the endpoint was told to forget. */
struct invalidation {
    uint32_t pasid;
    uint64_t address, last;
};

/* A response to a group of page requests. */
struct response {
    uint32_t pasid;
    uint16_t group;
    int code;
};

/* Writes that go on until they are stopped. */
struct writer {
    pthread_t thread;
    bool running, stop;
    struct space *space;
    uint64_t address, writes, refused, faults;
};

struct endpoint {
    char name[32];
    PCIDevice *device;
    PCIBus *bus;
    int devfn;
    struct space *spaces[MAX_SPACES];
    struct translation cache[CACHE_SIZE];
    unsigned next_entry;
    struct writer writer;
    /* Page requests that are not answered yet, by group. */
    uint16_t outstanding[512];
    uint32_t outstanding_sum;
    /* What it was told; guarded by `endpoint_reports_lock`, not by QEMU's lock. */
    struct invalidation invalidations[LIST_SIZE];
    struct response responses[LIST_SIZE];
    unsigned invalidation_count, response_count;
};

/* How a command ended. */
enum outcome {
    DONE,
    /* The IOMMU did not let it. */
    FAULT,
    /* The endpoint does not do it: what it needs is not switched on, as `endpoint_refusal` says. */
    REFUSED,
};

extern pthread_mutex_t endpoint_reports_lock;
extern pthread_cond_t endpoint_reports_changed;

/* Why the last command of this thread was refused. */
extern _Thread_local const char *endpoint_refusal;

/* Finds a device by its QEMU name and gives it the capabilities; an error text or NULL. Before the machine runs. */
const char *endpoint_make(struct endpoint *endpoint, const char *name);

/* Whether the endpoint works as it should while nothing is switched on yet; an error text or NULL. */
const char *endpoint_test(struct endpoint *endpoint);

/* A read or write with a PASID, or without one; the IOMMU translates. */
enum outcome endpoint_access(struct endpoint *endpoint, uint32_t pasid, uint64_t address, void *data, size_t size,
                             bool is_write);

/* A translation request for one page; a translation goes to the cache. */
enum outcome endpoint_translate(struct endpoint *endpoint, uint32_t pasid, uint64_t address, bool wants_write,
                                struct translation *result);

/* A read or write with an address from the cache; the IOMMU is not asked. Without a translation it is refused. */
enum outcome endpoint_cached_access(struct endpoint *endpoint, uint32_t pasid, uint64_t address, void *data,
                                    size_t size, bool is_write);

struct page_request {
    uint32_t pasid;
    uint64_t address;
    uint16_t group;
    bool is_read, is_write, last, privileged, execute;
};

/* A page request. FAULT is one that the unit could not take. */
enum outcome endpoint_request_page(struct endpoint *endpoint, const struct page_request *request);

/* As many page requests at once, each of a page and a group of its own, whatever the allocation is: as an endpoint does
   that keeps to no rules. Tells how many the unit took. */
enum outcome endpoint_flood(struct endpoint *endpoint, struct page_request request, uint64_t count, uint64_t *taken);

/* Starts writing 1, 2, 3 ... as eight-byte words, in turn to the eight words from `address` on. */
enum outcome endpoint_start_writes(struct endpoint *endpoint, uint32_t pasid, uint64_t address);

/* Stops that. Without QEMU's lock, which the writing thread needs. */
enum outcome endpoint_stop_writes(struct endpoint *endpoint);

#endif
