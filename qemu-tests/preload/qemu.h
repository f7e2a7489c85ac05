/*
 * What the endpoint uses of QEMU: functions that Debian's QEMU exports, declared as its public headers do and found by
 * name at run time, so that a QEMU without one of them starts all the same and the missing name can be told.
 */
#ifndef PORTCULLIS_QEMU_H
#define PORTCULLIS_QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* QEMU's own; only pointers to them are handled here. */
typedef struct AddressSpace AddressSpace;
typedef struct Object Object;
typedef struct PCIBus PCIBus;
typedef struct PCIDevice PCIDevice;
typedef struct VTDAddressSpace VTDAddressSpace;

/* An address space's number where a request has none. */
#define NO_PASID UINT32_MAX

/* Attributes of a request, at most eight bytes and so passed as one word; none set is a plain request. */
typedef uint64_t MemTxAttrs;

/* What an access ended with: 0, or bits that say why not. */
typedef uint32_t MemTxResult;

enum permission { PERMISSION_READ = 1, PERMISSION_WRITE = 2 };

/* A translation, or a range whose translations are invalid. */
typedef struct IOMMUTLBEntry {
    AddressSpace *target;
    uint64_t iova;
    uint64_t translated;
    uint64_t mask;
    int permission;
    /* Room for fields that other versions add. */
    uint64_t spare[12];
} IOMMUTLBEntry;

/* Filled in by QEMU; the size is a generous bound. */
typedef struct IOMMUNotifier {
    uint64_t contents[32];
} IOMMUNotifier;

typedef void (*IOMMUNotify)(IOMMUNotifier *notifier, IOMMUTLBEntry *range);

enum response_code { RESPONSE_SUCCESS, RESPONSE_INVALID, RESPONSE_FAILURE };

typedef struct IOMMUPRIResponse {
    int code;
    uint16_t group;
} IOMMUPRIResponse;

typedef struct IOMMUPRINotifier {
    void (*notify)(struct IOMMUPRINotifier *notifier, IOMMUPRIResponse *response);
} IOMMUPRINotifier;

/* A link in QEMU's list of those that are told of an event. */
typedef struct Notifier {
    void (*notify)(struct Notifier *notifier, void *data);
    void *links[2];
} Notifier;

#define QEMU_FUNCTIONS(F)                                                                                              \
    F(void, qemu_add_machine_init_done_notifier, (Notifier * notifier))                                                \
    F(void, bql_lock_impl, (const char *file, int line))                                                               \
    F(void, bql_unlock, (void))                                                                                        \
    F(void, rcu_register_thread, (void))                                                                               \
    F(void, rcu_unregister_thread, (void))                                                                             \
    F(Object *, object_resolve_path, (const char *path, bool *ambiguous))                                              \
    F(Object *, object_dynamic_cast, (Object * object, const char *type))                                              \
    F(int64_t, object_property_get_int, (Object * object, const char *name, void **error))                             \
    F(PCIBus *, qdev_get_parent_bus, (const Object *device))                                                           \
    F(Object *, x86_iommu_get_default, (void))                                                                         \
    F(AddressSpace *, pci_device_iommu_address_space, (PCIDevice * device))                                            \
    F(VTDAddressSpace *, vtd_find_add_as, (Object * unit, PCIBus *bus, int devfn, unsigned pasid))                     \
    F(MemTxResult, address_space_rw,                                                                                   \
      (AddressSpace * space, uint64_t address, MemTxAttrs attrs, void *data, uint64_t size, bool is_write))            \
    F(uint32_t, pci_default_read_config, (PCIDevice * device, uint32_t offset, int size))                              \
    F(void, pcie_pasid_init, (PCIDevice * device, uint16_t offset, uint8_t width, bool execute, bool privileged))      \
    F(void, pcie_ats_init, (PCIDevice * device, uint16_t offset, bool aligned))                                        \
    F(void, pcie_pri_init, (PCIDevice * device, uint16_t offset, uint32_t capacity, bool response_has_pasid))          \
    F(bool, pcie_pasid_enabled, (const PCIDevice *device))                                                             \
    F(bool, pcie_ats_enabled, (const PCIDevice *device))                                                               \
    F(bool, pcie_pri_enabled, (const PCIDevice *device))                                                               \
    F(uint32_t, pcie_pri_get_req_alloc, (const PCIDevice *device))                                                     \
    F(ssize_t, pci_ats_request_translation,                                                                            \
      (PCIDevice * device, uint32_t pasid, bool privileged, bool execute, uint64_t address, size_t size,               \
       bool no_write, IOMMUTLBEntry *results, size_t room, uint32_t *failures))                                        \
    F(int, pci_iommu_init_iotlb_notifier,                                                                              \
      (PCIDevice * device, IOMMUNotifier *notifier, IOMMUNotify notify, void *context))                                \
    F(int, pci_iommu_register_iotlb_notifier, (PCIDevice * device, uint32_t pasid, IOMMUNotifier *notifier))           \
    F(int, pci_pri_request_page,                                                                                       \
      (PCIDevice * device, uint32_t pasid, bool privileged, bool execute, uint64_t address, bool last,                 \
       uint16_t group, bool is_read, bool is_write))                                                                   \
    F(int, pci_pri_register_notifier, (PCIDevice * device, uint32_t pasid, IOMMUPRINotifier *notifier))

/* The functions, once they are found. */
struct qemu {
#define QEMU_POINTER(result, name, arguments) result(*name) arguments;
    QEMU_FUNCTIONS(QEMU_POINTER)
#undef QEMU_POINTER
};

extern struct qemu qemu;

/* Finds all functions; gives the name of the first that is missing, or NULL. */
const char *qemu_find_functions(void);

/* QEMU's big lock: held for everything below, except by functions that say otherwise. */
static inline void qemu_lock(void)
{
    qemu.bql_lock_impl("portcullis", 0);
}

static inline void qemu_unlock(void)
{
    qemu.bql_unlock();
}

#endif
