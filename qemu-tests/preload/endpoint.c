/* The endpoint. All of this runs under QEMU's lock unless it says otherwise. */
#define _GNU_SOURCE
#include "endpoint.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Offsets in the first 256 bytes of configuration space. */
#define COMMAND 0x04
#define COMMAND_BUS_MASTER 4

/* Where the capabilities go: behind those that QEMU's own devices have. */
#define ATS_OFFSET 0x200
#define PASID_OFFSET 0x210
#define PRI_OFFSET 0x220

#define PAGE UINT64_C(4096)

struct qemu qemu;
pthread_mutex_t endpoint_reports_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t endpoint_reports_changed;
_Thread_local const char *endpoint_refusal;

/* From a VTDAddressSpace to the AddressSpace in it; measured, as the structure is not public. */
static size_t memory_in_space;

const char *qemu_find_functions(void)
{
#define QEMU_FIND(result, name, arguments)                                                                             \
    *(void **)&qemu.name = dlsym(RTLD_DEFAULT, #name);                                                                 \
    if (!qemu.name)                                                                                                    \
        return #name;
    QEMU_FUNCTIONS(QEMU_FIND)
#undef QEMU_FIND
    return NULL;
}

static enum outcome refuse(const char *why)
{
    endpoint_refusal = why;
    return REFUSED;
}

static bool masters_the_bus(const struct endpoint *endpoint)
{
    return qemu.pci_default_read_config(endpoint->device, COMMAND, 2) & COMMAND_BUS_MASTER;
}

/* Whether the endpoint may issue requests in the address space of `pasid`. */
static enum outcome may_issue(const struct endpoint *endpoint, uint32_t pasid)
{
    if (!masters_the_bus(endpoint))
        return refuse("bus mastering is off");
    if (pasid != NO_PASID && !qemu.pcie_pasid_enabled(endpoint->device))
        return refuse("PASIDs are off");
    return DONE;
}

static VTDAddressSpace *find_space(const struct endpoint *endpoint, uint32_t pasid)
{
    return qemu.vtd_find_add_as(qemu.x86_iommu_get_default(), endpoint->bus, endpoint->devfn, pasid);
}

/* The space of a PASID, made when it is used first. */
static struct space *space_of(struct endpoint *endpoint, uint32_t pasid)
{
    for (unsigned i = 0; i < MAX_SPACES; i++) {
        struct space *space = endpoint->spaces[i];
        if (space && space->pasid == pasid)
            return space;
        if (space)
            continue;
        space = calloc(1, sizeof *space);
        if (!space)
            return NULL;
        space->owner = endpoint;
        space->pasid = pasid;
        space->memory = pasid == NO_PASID ? qemu.pci_device_iommu_address_space(endpoint->device)
                                          : (AddressSpace *)((char *)find_space(endpoint, pasid) + memory_in_space);
        endpoint->spaces[i] = space;
        return space;
    }
    return NULL;
}

const char *endpoint_make(struct endpoint *endpoint, const char *name)
{
    char path[64] = "/machine/peripheral/";
    strncat(path, name, sizeof path - strlen(path) - 1);
    strncpy(endpoint->name, name, sizeof endpoint->name - 1);
    Object *object = qemu.object_resolve_path(path, NULL);
    if (!object)
        return "there is no such device";
    if (!qemu.object_dynamic_cast(object, "pci-device"))
        return "it is no PCI device";
    endpoint->device = (PCIDevice *)object;
    endpoint->bus = qemu.qdev_get_parent_bus(object);
    int64_t devfn = qemu.object_property_get_int(object, "addr", NULL);
    if (devfn < 0 || devfn > 255)
        return "its place on the bus is not known";
    endpoint->devfn = (int)devfn;
    qemu.pcie_ats_init(endpoint->device, ATS_OFFSET, true);
    qemu.pcie_pasid_init(endpoint->device, PASID_OFFSET, PASID_WIDTH, true, true);
    qemu.pcie_pri_init(endpoint->device, PRI_OFFSET, PAGE_REQUEST_CAPACITY, true);
    return NULL;
}

/* Looks for an extended capability the way a driver does. */
static bool has_capability(const struct endpoint *endpoint, uint16_t id)
{
    uint32_t offset = 0x100;
    for (int steps = 0; offset >= 0x100 && steps < 64; steps++) {
        uint32_t header = qemu.pci_default_read_config(endpoint->device, offset, 4);
        if ((header & 0xffff) == id)
            return true;
        offset = header >> 20 & 0xffc;
    }
    return false;
}

const char *endpoint_test(struct endpoint *endpoint)
{
    Object *unit = qemu.x86_iommu_get_default();
    if (!unit || !qemu.object_dynamic_cast(unit, "intel-iommu"))
        return "the machine has no VT-d";
    if (!has_capability(endpoint, 0x0f) || !has_capability(endpoint, 0x1b) || !has_capability(endpoint, 0x13))
        return "its configuration space does not show the capabilities";
    /* One space found in two ways: the distance is the place of the inner structure, and no long one. */
    char *inner = (char *)qemu.pci_device_iommu_address_space(endpoint->device);
    char *outer = (char *)find_space(endpoint, NO_PASID);
    if (inner < outer || inner - outer > 64)
        return "its address space is not the unit's";
    memory_in_space = (size_t)(inner - outer);
    if (find_space(endpoint, 1) == find_space(endpoint, 2))
        return "two PASIDs have one address space";
    struct space *tagged = space_of(endpoint, 1);
    struct space *plain = space_of(endpoint, NO_PASID);
    if (!tagged || !plain)
        return "there is no memory";
    /* Before translation is on, both lead to memory: the start of the firmware is the same through either. */
    uint8_t through_tagged[64] = {0}, through_plain[64] = {1};
    const uint64_t firmware = 0xffff0000;
    if (qemu.address_space_rw(tagged->memory, firmware, 0, through_tagged, 64, false) ||
        qemu.address_space_rw(plain->memory, firmware, 0, through_plain, 64, false) ||
        memcmp(through_tagged, through_plain, 64))
        return "a read with a PASID does not reach memory";
    uint8_t byte;
    struct translation translation;
    struct page_request request = {.pasid = 1, .is_read = true, .last = true};
    if (endpoint_access(endpoint, 1, 0, &byte, 1, false) != REFUSED ||
        endpoint_translate(endpoint, 1, 0, false, &translation) != REFUSED ||
        endpoint_request_page(endpoint, &request) != REFUSED)
        return "it issues requests although nothing is switched on";
    return NULL;
}

enum outcome endpoint_access(struct endpoint *endpoint, uint32_t pasid, uint64_t address, void *data, size_t size,
                             bool is_write)
{
    if (may_issue(endpoint, pasid) != DONE)
        return REFUSED;
    struct space *space = space_of(endpoint, pasid);
    if (!space)
        return refuse("too many PASIDs were used");
    return qemu.address_space_rw(space->memory, address, 0, data, size, is_write) ? FAULT : DONE;
}

/* The unit invalidates: what overlaps the range leaves the cache. */
static void forget(IOMMUNotifier *notifier, IOMMUTLBEntry *range)
{
    struct space *space = (struct space *)notifier;
    struct endpoint *endpoint = space->owner;
    uint64_t first = range->iova, last = range->iova | range->mask;
    for (struct translation *entry = endpoint->cache; entry < endpoint->cache + CACHE_SIZE; entry++)
        if (entry->size && entry->pasid == space->pasid && entry->address <= last &&
            entry->address + (entry->size - 1) >= first)
            entry->size = 0;
    pthread_mutex_lock(&endpoint_reports_lock);
    if (endpoint->invalidation_count < LIST_SIZE)
        endpoint->invalidations[endpoint->invalidation_count++] = (struct invalidation){space->pasid, first, last};
    pthread_mutex_unlock(&endpoint_reports_lock);
}

static struct translation *cached(struct endpoint *endpoint, uint32_t pasid, uint64_t address)
{
    for (struct translation *entry = endpoint->cache; entry < endpoint->cache + CACHE_SIZE; entry++)
        if (entry->size && entry->pasid == pasid && address - entry->address < entry->size)
            return entry;
    return NULL;
}

enum outcome endpoint_translate(struct endpoint *endpoint, uint32_t pasid, uint64_t address, bool wants_write,
                                struct translation *result)
{
    if (may_issue(endpoint, pasid) != DONE)
        return REFUSED;
    if (!qemu.pcie_ats_enabled(endpoint->device))
        return refuse("ATS is off");
    struct space *space = space_of(endpoint, pasid);
    if (!space)
        return refuse("too many PASIDs were used");
    /* Whoever caches has to hear of invalidations first. */
    if (!space->hears_invalidations) {
        if (qemu.pci_iommu_init_iotlb_notifier(endpoint->device, &space->invalidations, forget, NULL) ||
            qemu.pci_iommu_register_iotlb_notifier(endpoint->device, pasid, &space->invalidations))
            return refuse("the unit does not tell of invalidations");
        space->hears_invalidations = true;
    }
    IOMMUTLBEntry entry = {0};
    uint32_t failures = 0;
    ssize_t count = qemu.pci_ats_request_translation(endpoint->device, pasid, false, false, address & -PAGE, PAGE,
                                                     !wants_write, &entry, 1, &failures);
    if (count < 1 || failures || !(entry.permission & (PERMISSION_READ | PERMISSION_WRITE)))
        return FAULT;
    *result = (struct translation){
        .pasid = pasid,
        .address = entry.iova,
        .translated = entry.translated,
        .size = entry.mask + 1,
        .permission = entry.permission,
        .target = entry.target,
    };
    struct translation *place = cached(endpoint, pasid, address);
    if (!place)
        place = &endpoint->cache[endpoint->next_entry++ % CACHE_SIZE];
    *place = *result;
    return DONE;
}

enum outcome endpoint_cached_access(struct endpoint *endpoint, uint32_t pasid, uint64_t address, void *data,
                                    size_t size, bool is_write)
{
    if (may_issue(endpoint, pasid) != DONE)
        return REFUSED;
    if (!qemu.pcie_ats_enabled(endpoint->device))
        return refuse("ATS is off");
    struct translation *entry = cached(endpoint, pasid, address);
    if (!entry || !(entry->permission & (is_write ? PERMISSION_WRITE : PERMISSION_READ)))
        return refuse("no translation is cached");
    if (size > entry->size - (address - entry->address))
        return refuse("the translation ends before");
    uint64_t target = entry->translated + (address - entry->address);
    return qemu.address_space_rw(entry->target, target, 0, data, size, is_write) ? FAULT : DONE;
}

/* The unit responds to a group of page requests. */
static void take_response(IOMMUPRINotifier *notifier, IOMMUPRIResponse *response)
{
    struct space *space = (struct space *)((char *)notifier - offsetof(struct space, responses));
    struct endpoint *endpoint = space->owner;
    uint16_t *outstanding = &endpoint->outstanding[response->group % 512];
    endpoint->outstanding_sum -= *outstanding;
    *outstanding = 0;
    pthread_mutex_lock(&endpoint_reports_lock);
    if (endpoint->response_count < LIST_SIZE)
        endpoint->responses[endpoint->response_count++] =
            (struct response){space->pasid, response->group, response->code};
    pthread_cond_broadcast(&endpoint_reports_changed);
    pthread_mutex_unlock(&endpoint_reports_lock);
}

/* Whether the endpoint may request pages in the address space of `pasid`; it hears of the responses then. */
static enum outcome may_request(struct endpoint *endpoint, uint32_t pasid)
{
    if (may_issue(endpoint, pasid) != DONE)
        return REFUSED;
    if (!qemu.pcie_pri_enabled(endpoint->device))
        return refuse("page requests are off");
    struct space *space = space_of(endpoint, pasid);
    if (!space)
        return refuse("too many PASIDs were used");
    if (!space->hears_responses) {
        space->responses.notify = take_response;
        if (qemu.pci_pri_register_notifier(endpoint->device, pasid, &space->responses))
            return refuse("the unit does not pass responses on");
        space->hears_responses = true;
    }
    return DONE;
}

static enum outcome send_request(struct endpoint *endpoint, const struct page_request *request)
{
    uint16_t *outstanding = &endpoint->outstanding[request->group % 512];
    int error = qemu.pci_pri_request_page(endpoint->device, request->pasid, request->privileged, request->execute,
                                          request->address & -PAGE, request->last, request->group, request->is_read,
                                          request->is_write);
    if (error)
        return FAULT;
    /* A stop marker gets no response. The responses of others come later: they take QEMU's lock. */
    if (request->is_read || request->is_write || !request->last) {
        *outstanding += 1;
        endpoint->outstanding_sum += 1;
    }
    return DONE;
}

enum outcome endpoint_request_page(struct endpoint *endpoint, const struct page_request *request)
{
    if (may_request(endpoint, request->pasid) != DONE)
        return REFUSED;
    if (endpoint->outstanding_sum >= qemu.pcie_pri_get_req_alloc(endpoint->device))
        return refuse("as many page requests as are allowed are outstanding");
    return send_request(endpoint, request);
}

enum outcome endpoint_flood(struct endpoint *endpoint, struct page_request request, uint64_t count, uint64_t *taken)
{
    *taken = 0;
    if (may_request(endpoint, request.pasid) != DONE)
        return REFUSED;
    for (uint64_t i = 0; i < count; i++) {
        request.group = i % 512;
        *taken += send_request(endpoint, &request) == DONE;
        request.address += PAGE;
    }
    return DONE;
}

/* Runs without QEMU's lock and takes it for each write. */
static void *write_on(void *argument)
{
    struct endpoint *endpoint = argument;
    struct writer *writer = &endpoint->writer;
    qemu.rcu_register_thread();
    while (!__atomic_load_n(&writer->stop, __ATOMIC_ACQUIRE)) {
        qemu_lock();
        uint64_t value = writer->writes + 1;
        uint64_t address = writer->address + value % 8 * 8;
        if (may_issue(endpoint, writer->space->pasid) != DONE)
            writer->refused += 1;
        else if (qemu.address_space_rw(writer->space->memory, address, 0, &value, sizeof value, true))
            writer->faults += 1;
        else
            writer->writes = value;
        qemu_unlock();
        /* QEMU's lock is not fair: the guest gets its turn here. */
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    qemu.rcu_unregister_thread();
    return NULL;
}

enum outcome endpoint_start_writes(struct endpoint *endpoint, uint32_t pasid, uint64_t address)
{
    struct writer *writer = &endpoint->writer;
    if (writer->running)
        return refuse("it writes already");
    struct space *space = space_of(endpoint, pasid);
    if (!space)
        return refuse("too many PASIDs were used");
    *writer = (struct writer){.space = space, .address = address};
    if (pthread_create(&writer->thread, NULL, write_on, endpoint))
        return refuse("there is no thread");
    writer->running = true;
    return DONE;
}

enum outcome endpoint_stop_writes(struct endpoint *endpoint)
{
    struct writer *writer = &endpoint->writer;
    if (!writer->running)
        return refuse("it does not write");
    __atomic_store_n(&writer->stop, true, __ATOMIC_RELEASE);
    pthread_join(writer->thread, NULL);
    writer->running = false;
    return DONE;
}
