//! The VT-d model against hand-made tables and descriptors.

#[path = "vtd/caches.rs"]
mod caches;
#[path = "vtd/device.rs"]
mod device;
#[path = "vtd/faults.rs"]
mod faults;
#[path = "vtd/machine.rs"]
mod machine;
#[path = "vtd/queue.rs"]
mod queue;
#[path = "vtd/random.rs"]
mod random;
#[path = "vtd/registers.rs"]
mod registers;
#[path = "vtd/requests.rs"]
mod requests;
#[path = "vtd/robust.rs"]
mod robust;
#[path = "vtd/tearing.rs"]
mod tearing;
#[path = "vtd/walks.rs"]
mod walks;
