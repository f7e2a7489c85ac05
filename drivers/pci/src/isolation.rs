//! Which functions can be given to different owners.

use crate::function::Function;
use crate::spec::PortType;
use crate::{ListMemory, try_filled, try_push};
use alloc::vec::Vec;
use core::fmt;
use portcullis_hal::list::sort_by_key;

/// A set of functions that cannot be isolated from one another, and that have one owner. Numbered from 0 in the
/// order in which their first members were enumerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u32);

impl GroupId {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// Puts the functions of a segment into isolation groups: the result has one entry for each of them.
///
/// Two functions share a group if a request of one can reach the other without passing the IOMMU, or if the IOMMU
/// cannot tell their requests apart:
///
/// - Everything behind a bridge to or from conventional PCI, and the bridge: requests carry the bridge's id, and
///   the bus is shared.
/// - Everything behind a root port without ACS, and the port: requests turn around in it. Root ports are taken to
///   reach each other through the IOMMU only; those that are functions of one device, only if they have ACS.
/// - The whole of a switch with a downstream port that has no ACS.
/// - The functions of a device, and what is behind those of them that are bridges, unless every one has ACS.
///
/// A port or function has ACS if the isolating services are on; [`enable_acs`](crate::enable_acs) sees to that.
/// Everything else is a group by itself, also functions on a root bus that look conventional: they are integrated
/// in the root complex.
///
/// # Errors
///
/// No memory for a list.
pub fn isolation_groups(functions: &[Function]) -> Result<Vec<GroupId>, ListMemory> {
    let mut sets = Sets::new(functions.len())?;
    // For each bridge: all that is behind it is in one group with it.
    let mut fused = try_filled(false, functions.len())?;

    for (index, function) in functions.iter().enumerate() {
        if let Some(bridge) = fused_by(functions, index, function)
            && let Some(flag) = fused.get_mut(bridge)
        {
            *flag = true;
        }
    }
    join_devices(functions, &mut sets, &mut fused)?;
    // A bridge comes before what is behind it, so one pass takes the mark to the leaves.
    for (index, function) in functions.iter().enumerate() {
        let parent = function.parent.filter(|&parent| parent < index);
        if let Some(parent) = parent.filter(|&parent| fused.get(parent) == Some(&true)) {
            sets.join(parent, index);
            if let Some(flag) = fused.get_mut(index) {
                *flag = true;
            }
        }
    }
    sets.number()
}

/// The bridge below which isolation ends because of this function, if it is a bridge that does not isolate.
fn fused_by(functions: &[Function], index: usize, function: &Function) -> Option<usize> {
    function.buses()?;
    match function.port_type() {
        Some(PortType::DOWNSTREAM) if !function.isolates() => {
            // What comes up here can go down at any other port of the switch.
            let upstream = function.parent.filter(|&parent| parent < index);
            Some(upstream.filter(|&parent| parent < functions.len()).unwrap_or(index))
        }
        Some(PortType::ROOT_PORT) if !function.isolates() => Some(index),
        Some(PortType::ROOT_PORT | PortType::DOWNSTREAM | PortType::UPSTREAM) => None,
        // Bridges to and from conventional PCI, conventional ones, and kinds that do not exist.
        _ => Some(index),
    }
}

/// Joins the functions of each device in which one does not isolate.
fn join_devices(functions: &[Function], sets: &mut Sets, fused: &mut [bool]) -> Result<(), ListMemory> {
    let mut order: Vec<usize> = Vec::new();
    order.try_reserve_exact(functions.len())?;
    order.extend(0..functions.len());
    sort_by_key(&mut order, |&index| (device_of(functions, index), index));
    let mut rest = &*order;
    while let Some(&first) = rest.first() {
        let same = |&&index: &&usize| device_of(functions, index) == device_of(functions, first);
        let Some((device, others)) = rest.split_at_checked(rest.iter().take_while(same).count()) else {
            break;
        };
        rest = others;
        let isolated = |&index: &usize| functions.get(index).is_some_and(Function::isolates);
        if device.len() < 2 || device.iter().all(isolated) {
            continue;
        }
        for &index in device {
            sets.join(first, index);
            if let Some(flag) = fused.get_mut(index) {
                *flag = true;
            }
        }
    }
    Ok(())
}

/// Segment, bus and device of a function. Below a port there is only one device, whose functions may count up to
/// 256 (ARI).
fn device_of(functions: &[Function], index: usize) -> Option<(u16, u8, u8)> {
    let function = functions.get(index)?;
    let parent = function.parent.and_then(|parent| functions.get(parent));
    let device = if parent.is_some_and(Function::has_link_below) { 0 } else { function.id.device() };
    Some((function.id.segment(), function.id.bus(), device))
}

/// Disjoint sets of indices, each named by its lowest.
struct Sets {
    parents: Vec<usize>,
}

impl Sets {
    fn new(len: usize) -> Result<Self, ListMemory> {
        let mut parents = Vec::new();
        parents.try_reserve_exact(len)?;
        parents.extend(0..len);
        Ok(Self { parents })
    }

    /// The lowest member of the set. An entry never exceeds its own index, so the walk ends.
    fn find(&mut self, index: usize) -> usize {
        let mut at = index;
        while let Some(&next) = self.parents.get(at).filter(|&&next| next < at) {
            // Halves the path for the next time.
            let skip = self.parents.get(next).copied().unwrap_or(next);
            if let Some(entry) = self.parents.get_mut(at) {
                *entry = skip;
            }
            at = skip;
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        if let Some(entry) = self.parents.get_mut(a.max(b)) {
            *entry = a.min(b);
        }
    }

    /// Numbers the sets in the order of their lowest members.
    fn number(mut self) -> Result<Vec<GroupId>, ListMemory> {
        let len = self.parents.len();
        let mut groups: Vec<GroupId> = Vec::new();
        let mut next = 0;
        for index in 0..len {
            let lowest = self.find(index);
            // The lowest member comes first, so its number is there for the others.
            let group = groups.get(lowest).copied().unwrap_or(GroupId(next));
            if lowest == index {
                next += 1;
            }
            try_push(&mut groups, group)?;
        }
        Ok(groups)
    }
}
