//! A summary of what is with the device, so that most requests need not look at the others.

use crate::request::Change;
use portcullis_hal::IovaRange;

/// Requests of one kind that are with the device, whatever their domains.
#[derive(Clone, Copy, Debug, Default)]
struct Crowd {
    count: u16,
    /// All their addresses, and those of others that have left since it was empty.
    hull: Option<IovaRange>,
}

/// The maps and the unmaps that are with the device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flight {
    maps: Crowd,
    unmaps: Crowd,
}

impl Flight {
    fn crowd(&mut self, change: Change) -> &mut Crowd {
        match change {
            Change::Map => &mut self.maps,
            Change::Unmap => &mut self.unmaps,
        }
    }

    pub(crate) fn add(&mut self, change: Change, range: &IovaRange) {
        let crowd = self.crowd(change);
        crowd.count = crowd.count.saturating_add(1);
        crowd.hull = Some(crowd.hull.map_or(*range, |hull| hull.hull(range)));
    }

    pub(crate) fn remove(&mut self, change: Change) {
        let crowd = self.crowd(change);
        crowd.count = crowd.count.saturating_sub(1);
        if crowd.count == 0 {
            crowd.hull = None;
        }
    }

    /// Whether one of these changes can concern `range`. A `false` is certain.
    pub(crate) fn may_touch(&self, change: Change, range: &IovaRange) -> bool {
        let crowd = match change {
            Change::Map => &self.maps,
            Change::Unmap => &self.unmaps,
        };
        crowd.hull.is_some_and(|hull| hull.overlaps(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::Iova;

    #[test]
    fn nothing_is_missed_until_the_last_of_a_kind_has_left() {
        let range = |start| IovaRange::new(Iova::new(start), 0x1000).unwrap();
        let mut flight = Flight::default();
        assert!(!flight.may_touch(Change::Map, &range(0x1000)));
        flight.add(Change::Map, &range(0x1000));
        flight.add(Change::Map, &range(0x5000));
        assert!(
            flight.may_touch(Change::Map, &range(0x1000)) && flight.may_touch(Change::Map, &range(0x5000))
        );
        assert!(!flight.may_touch(Change::Map, &range(0x6000)));
        assert!(!flight.may_touch(Change::Unmap, &range(0x1000)));
        flight.remove(Change::Map);
        assert!(
            flight.may_touch(Change::Map, &range(0x1000)) && flight.may_touch(Change::Map, &range(0x5000))
        );
        flight.remove(Change::Map);
        assert!(!flight.may_touch(Change::Map, &range(0x1000)));
    }
}
