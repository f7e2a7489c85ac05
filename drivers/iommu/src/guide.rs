//! How a kernel uses this crate, from boot to page faults. Documentation only.
//!
//! # In which order
//!
//! | step | call | before |
//! |---|---|---|
//! | the unit is brought up by its driver | `Setup::new`, `enable` of `portcullis-smmuv3`, `-vtd` or `-virtio-iommu` | devices may master the bus |
//! | it is registered | [`Iommu::add_unit`] | its interrupt is unmasked |
//! | its interrupt is routed | your handler calls [`Iommu::handle_interrupt`], and wakes a thread for what that leaves | anything is attached; where there is no interrupt, a timer calls it |
//! | devices are registered | [`Iommu::add_device`], with all that firmware reserves for them | their drivers start |
//! | a domain is made and attached | [`Iommu::new_domain`], [`Iommu::attach`] | the driver hands addresses to the device |
//! | a device's PASIDs, page requests and ATS go on | [`Iommu::enable`] or [`Iommu::enable_feature`] | [`Iommu::attach_pasid`], [`Iommu::bind`] |
//!
//! Until it is attached a device reaches nothing. Units and devices stay registered for the life of the [`Iommu`].
//!
//! # Who may call what
//!
//! [`Iommu::handle_interrupt`] is for interrupt handlers, and never waits; all others are for threads, on any CPU and on
//! several at once. Mapping and unmapping of distinct ranges of a domain go on beside each other; attachments are made one
//! after the other. A thread may hold locks of its own in a call if it takes none of them in a [`FaultHandler`], an
//! [`ExitHandler`] or a [`PageFaultHandler`].
//!
//! Waits for hardware are bounded by the time-out that the unit's options have, in nanoseconds by [`Hal::now_ns`]. After one
//! that ran out the unit is out of order: it still blocks, and takes nothing else
//! ([`AttachError::Faulted`], [`SyncError::Faulted`]).
//!
//! # Memory for a device
//!
//! Addresses and lengths are bytes, and multiples of the domain's smallest page
//! ([`IoSpace::page_sizes`](portcullis_hal::IoSpace::page_sizes)). Memory goes in by value, and comes back when no device can
//! reach it: after a strict unmap, or, where many unmaps share one wait, for the proof that their [`Gather`] was synced. What
//! is dropped in between is leaked and never used again.
//!
//! ```
//! use portcullis_hal::{Attributes, FrameOrder, Frames, Gather, Hal, Iova, Mapped};
//! use portcullis_iommu::{Device, Domain, DomainSpec, Iommu, PagingSpec};
//! use std::error::Error;
//! # fn work<H: Hal>(_ring: &Mapped<Frames<H>, dyn Domain>, _buffers: &[Mapped<Frames<H>, dyn Domain>]) {}
//!
//! /// Lends a device a ring and some buffers, and takes all of it back.
//! fn lend<H: Hal>(iommu: &Iommu<H>, device: &Device, hal: &H) -> Result<Vec<Frames<H>>, Box<dyn Error>> {
//!     let domain = iommu.new_domain(device, &DomainSpec::Paging(PagingSpec::default()))?;
//!     iommu.attach(device, &domain)?;
//!
//!     let ring = Frames::zeroed(hal, FrameOrder::SINGLE)?;
//!     let ring = Mapped::map(&domain, Iova::new(0x10_0000), ring, Attributes::READ_WRITE)?;
//!     let mut buffers = Vec::new();
//!     for number in 0..8 {
//!         let buffer = Frames::zeroed(hal, FrameOrder::SINGLE)?;
//!         let iova = Iova::new(0x20_0000 + number * 0x1000);
//!         buffers.push(Mapped::map(&domain, iova, buffer, Attributes::READ)?);
//!     }
//!     work(&ring, &buffers);
//!
//!     // Strict: the call waits until the hardware has forgotten the page.
//!     let mut frames = vec![ring.unmap()?];
//!
//!     // Gathered: one invalidation and one wait for all of them.
//!     let mut gather = Gather::new();
//!     let mut unmapped = Vec::new();
//!     for buffer in buffers {
//!         unmapped.push(buffer.unmap_into(&mut gather)?);
//!     }
//!     let proof = domain.sync(&mut gather)?;
//!     frames.extend(unmapped.into_iter().flat_map(|buffer| buffer.reclaim(&proof)));
//!     iommu.detach(device)?;
//!     Ok(frames)
//! }
//! ```
//!
//! [`IovaAllocator`] hands addresses out, around what is [reserved](Device::reserved). Memory that is nobody's to free, a
//! doorbell say, is a [`FixedMapping`](portcullis_hal::FixedMapping).
//!
//! # Faults
//!
//! What a device was refused is in a log of 64 entries that a thread empties, and its driver's handler is told at once, from
//! the interrupt. What finds no room is counted ([`Iommu::faults_dropped`], [`Iommu::overflows`]).
//!
//! ```
//! use portcullis_hal::{Arc, Hal, OutOfMemory, unsize_arc};
//! use portcullis_iommu::{Device, Fault, FaultHandler, Iommu, PageFaultWork, UnitId};
//! use std::sync::atomic::{AtomicU32, Ordering};
//!
//! /// Counts what a device was refused. Its driver looks, and resets the device when it is too much.
//! struct Refusals(AtomicU32);
//!
//! impl FaultHandler for Refusals {
//!     fn fault(&self, _fault: &Fault) {
//!         self.0.fetch_add(1, Ordering::Relaxed);
//!     }
//! }
//!
//! fn watch<H: Hal>(iommu: &Iommu<H>, device: &Device) -> Result<Arc<Refusals>, OutOfMemory> {
//!     let refusals = Arc::try_new(Refusals(AtomicU32::new(0)))?;
//!     iommu.set_fault_handler(device, Some(unsize_arc!(refusals.clone() => dyn FaultHandler)));
//!     Ok(refusals)
//! }
//!
//! /// The kernel's interrupt handler for a unit.
//! fn interrupt<H: Hal>(iommu: &Iommu<H>, unit: UnitId, wake: impl FnOnce()) {
//!     if iommu.handle_interrupt(unit) == PageFaultWork::More {
//!         wake();
//!     }
//! }
//!
//! /// The thread that it wakes, on a machine without page faults too: no interrupt tells of faults beyond a queueful.
//! fn go_on<H: Hal>(iommu: &Iommu<H>) {
//!     while iommu.handle_page_faults() == PageFaultWork::More {}
//! }
//!
//! /// What a thread finds later: a line for each fault.
//! fn report<H: Hal>(iommu: &Iommu<H>) -> Vec<String> {
//!     std::iter::from_fn(|| iommu.next_fault()).map(|fault| fault.to_string()).collect()
//! }
//! ```
//!
//! # Page faults
//!
//! A device with page requests (PRI), or behind a unit that stalls its accesses, waits for a page as a CPU does, once
//! [`Feature::PageFaults`] is enabled. Interrupts queue what it asks; a thread calls [`Iommu::handle_page_faults`], and that
//! calls the handler of the PASID. Every group of requests has one answer: the one that the handler gives, at once or
//! [later](Handled::Later), or a refusal when the group is dropped, the handler removed or the queue full.
//!
//! ```
//! use portcullis_hal::{Access, Arc, Hal, Iova, Pasid, unsize_arc};
//! use portcullis_iommu::{
//!     Device, FaultGroup, Handled, Iommu, PageFaultHandler, PageFaultWork, PageResponse, PageRights,
//! };
//! use std::error::Error;
//! # fn fetch(_address: Iova, _access: Access) -> bool { true }
//!
//! struct Pager;
//!
//! impl PageFaultHandler for Pager {
//!     fn handle(&self, group: FaultGroup) -> Handled {
//!         let there = group.requests().all(|request| fetch(request.address, request.access));
//!         Handled::Now(group, if there { PageResponse::Success } else { PageResponse::Invalid })
//!     }
//! }
//!
//! fn page<H: Hal>(iommu: &Iommu<H>, device: &Device, pasid: Option<Pasid>) -> Result<(), Box<dyn Error>> {
//!     let pager = unsize_arc!(Arc::try_new(Pager)? => dyn PageFaultHandler);
//!     Ok(iommu.set_page_fault_handler(device, pasid, pager, PageRights::empty())?)
//! }
//!
//! /// A thread that interrupts wake.
//! fn serve<H: Hal>(iommu: &Iommu<H>) {
//!     while iommu.handle_page_faults() == PageFaultWork::More {}
//! }
//! ```
//!
//! # A process's own addresses
//!
//! [`Iommu::bind`] gives a device a PASID that stands for an address space: the same tables, the same faults, the same
//! exit. An address space has one PASID in a namespace, whatever devices are bound to it, and however often. What
//! happens to it reaches the devices as it reaches other CPUs:
//!
//! | the process | the device |
//! |---|---|
//! | touches a page that is not there | [asks for it](PageFaultHandler), and goes on when [`Mm::handle_fault`] has resolved it |
//! | unmaps or protects pages | has forgotten them when [`MmNotifier::invalidate`] returns |
//! | exits | its driver [is told](ExitHandler), then it is cut off: no walks and no reports; the PASID stays taken |
//!
//! The last [`Bond`] of an address space gives the PASID back, after the unit has forgotten it and every page request
//! was answered. If the unit does not confirm that, the PASID is never used again.
//!
//! ```
//! use portcullis_hal::{Arc, Hal, Mm, Pasid, unsize_arc};
//! use portcullis_iommu::{Device, DeviceControl, ExitHandler, Feature, Iommu, PageRights};
//! # fn start(_device: &Device, _pasid: Option<Pasid>, _buffer: u64) {}
//! # fn stop(_device: &Device, _pasid: Option<Pasid>) {}
//!
//! struct Driver;
//!
//! impl ExitHandler for Driver {
//!     fn exit(&self, device: &Device, pasid: Option<Pasid>) {
//!         stop(device, pasid);
//!     }
//! }
//!
//! /// Lets a device work on a process's buffer, where the process sees it.
//! fn work<H: Hal>(
//!     iommu: &Iommu<H>,
//!     device: &Arc<Device>,
//!     control: &dyn DeviceControl,
//!     mm: &Arc<dyn Mm>,
//!     buffer: u64,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     iommu.enable_feature(device, control, Feature::Sva, &mm.root())?;
//!     let on_exit = unsize_arc!(Arc::try_new(Driver)? => dyn ExitHandler);
//!     let bond = iommu.bind(device, mm, PageRights::empty(), on_exit)?;
//!     start(device, bond.pasid(), buffer);
//!     // Interrupt handlers call `iommu.handle_interrupt`, and a thread:
//!     let _more = iommu.handle_page_faults();
//!     stop(device, bond.pasid());
//!     bond.unbind()?;
//!     Ok(iommu.disable_feature(device, control, Feature::Sva)?)
//! }
//! ```
//!
//! A device without PASIDs or without page faults is attached as a whole, by [`Iommu::attach_pinned`], with the ranges
//! that stay resident for it.

#[cfg(doc)]
use crate::*;
#[cfg(doc)]
use portcullis_hal::{Gather, Hal, Mm, MmNotifier, SyncError};
