//! Every operation of a unit, with each of its allocations failing.
//!
//! After a failure devices reach what they reached before, through every cache, and the same operation succeeds when
//! it is tried again; in the end not a frame and not a byte of heap is missing. How many allocations each operation
//! makes, and how many frames a failed one may keep for the next, is a table beside the test of each back end.

mod bed;
mod board;
mod books;
mod rows;
mod sharing;
mod sizes;

pub use board::{Board, Hardware, PATIENCE_NS, Parts, Registers};

use bed::{Bed, PAGE, Reach};
use portcullis_hal::host::scarce::{exempt, failing, heap_left_by, unfailing};
use portcullis_hal::{Iova, MapError, OutOfMemory, ResizeError, SyncError, UnmapError};
use portcullis_iommu::{AddDeviceError, AttachError, DomainError};
use rows::{Lack, Row, Seen, rows};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Makes a board.
pub type Build = fn() -> Board;

/// Why an operation was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// For want of memory.
    OutOfMemory,
    /// Otherwise.
    Otherwise(String),
}

macro_rules! failed_from {
    ($($error:ty => $out_of_memory:pat,)+) => {
        $(impl From<$error> for Failed {
            fn from(error: $error) -> Self {
                if matches!(error, $out_of_memory) { Self::OutOfMemory } else { Self::Otherwise(error.to_string()) }
            }
        })+
    };
}

failed_from! {
    OutOfMemory => OutOfMemory,
    DomainError => DomainError::OutOfMemory(_),
    AttachError => AttachError::OutOfMemory(_) | AttachError::Reserved(MapError::OutOfMemory(_)),
    MapError => MapError::OutOfMemory(_),
    AddDeviceError => AddDeviceError::OutOfMemory(_),
    ResizeError => ResizeError::OutOfMemory(_),
}

impl From<UnmapError> for Failed {
    fn from(error: UnmapError) -> Self {
        Self::Otherwise(error.to_string())
    }
}

impl From<SyncError> for Failed {
    fn from(error: SyncError) -> Self {
        Self::Otherwise(error.to_string())
    }
}

/// What became of an operation whose n-th allocation failed.
struct Trial {
    tripped: bool,
    /// Frames that the failed operation kept for the next.
    kept: usize,
    after: Reach,
    /// Frames and bytes of heap left when everything was dropped.
    left: (usize, isize),
}

impl Row {
    fn trial(&self, build: Build, n: usize) -> Trial {
        let context = |text: &str| format!("{}, allocation {n}: {text}", self.name);
        let mut trial = Trial { tripped: false, kept: 0, after: Reach::new(), left: (0, 0) };
        let heap = heap_left_by(|| {
            let hal = {
                let bed = Bed::new(exempt(build))
                    .unwrap_or_else(|error| panic!("{}: {error:?}", context("no bed")));
                (self.prepare)(&bed).unwrap_or_else(|error| panic!("{}: {error:?}", context("not prepared")));
                let (before, frames) = (bed.reach(), bed.board.hal().frames_in_use());
                let (result, tripped) = failing(n, || (self.act)(&bed));
                trial.tripped = tripped;
                if tripped {
                    let expected = match self.lack {
                        Lack::Reported => Err(Failed::OutOfMemory),
                        Lack::Absorbed => Ok(()),
                    };
                    assert_eq!(result, expected, "{}", context("failed for another reason"));
                    let same = exempt(|| bed.reach() == before);
                    assert!(same, "{}", context("devices reach something else"));
                    trial.kept = bed.board.hal().frames_in_use() - frames;
                    let again = (self.act)(&bed);
                    assert_eq!(again, Ok(()), "{}", context("not done when tried again"));
                } else {
                    assert_eq!(result, Ok(()), "{}", context("failed though nothing was missing"));
                }
                trial.after = bed.reach();
                if self.seen == Seen::Yes {
                    assert_ne!(trial.after, before, "{}", context("devices see no difference"));
                }
                exempt(|| drop(before));
                let _ = bed.unit.detach(&bed.endpoints);
                let hal = exempt(|| bed.board.hal().clone());
                let Bed { board, iommu, unit, kinds, .. } = bed;
                drop((iommu, kinds, unit));
                exempt(|| drop(board));
                hal
            };
            trial.left.0 = hal.frames_in_use();
            exempt(|| drop(hal));
        });
        trial.left.1 = heap;
        trial
    }

    /// The operation with each of its allocations failing; how many there are, and the most that a failure kept.
    fn run(&self, build: Build) -> (usize, usize) {
        let whole = self.trial(build, usize::MAX);
        let mut most = 0;
        for n in 0..1000 {
            let trial = self.trial(build, n);
            assert_eq!(
                trial.left, whole.left,
                "{}, allocation {n}: frames and heap that are left",
                self.name
            );
            assert_eq!(trial.after, whole.after, "{}, allocation {n}: what devices reach", self.name);
            most = most.max(trial.kept);
            if !trial.tripped {
                return (n, most);
            }
        }
        panic!("{}: no end of allocations", self.name)
    }
}

/// Setting up, with each of its allocations failing; how many there are.
fn set_up(build: Build) -> usize {
    let trial = |n| {
        let (mut tripped, mut frames) = (false, 0);
        let heap = heap_left_by(|| {
            let board = exempt(build);
            let reach = || {
                let all = board.endpoints().map(|endpoint| board.reach(endpoint, None, Iova::new(PAGE)));
                all.into_iter().flatten().flatten().collect::<BTreeSet<u64>>()
            };
            let before = exempt(reach);
            let (result, failed) = failing(n, || board.set_up());
            tripped = failed;
            let unit = if failed {
                assert_eq!(result.err(), Some(Failed::OutOfMemory), "set-up, allocation {n}");
                let after = exempt(reach);
                assert!(after.is_subset(&before), "set-up, allocation {n}: devices reach more");
                exempt(|| drop(after));
                board.set_up()
            } else {
                result
            };
            let unit = unit.unwrap_or_else(|error| panic!("set-up, allocation {n}: {error:?}"));
            assert!(exempt(reach).is_empty(), "set-up, allocation {n}: a device is not denied");
            exempt(|| drop(before));
            drop(unit);
            frames = board.hal().frames_in_use();
            exempt(|| drop(board));
        });
        (tripped, (frames, heap))
    };
    let (_, whole) = trial(usize::MAX);
    for n in 0..1000 {
        let (tripped, left) = trial(n);
        assert_eq!(left, whole, "set-up, allocation {n}: frames and heap that are left");
        if !tripped {
            return n;
        }
    }
    panic!("set-up: no end of allocations")
}

/// Does everything on boards like this, with each of its allocations failing, and compares how many these are with a table.
///
/// # Panics
///
/// Something was changed, reached or lost that should not be; or the table is another one, which is then printed.
pub fn check(build: Build, expected: &str) {
    let mut table =
        String::from("# operation, allocations, most frames that a failed one keeps for the next\n");
    let _ = writeln!(table, "{:<48}{:>4}{:>4}", "set-up", set_up(build), 0);
    let bed = Bed::new(build()).unwrap_or_else(|error| panic!("{error:?}"));
    for row in rows(&bed) {
        let (points, kept) = row.run(build);
        let _ = writeln!(table, "{:<48}{points:>4}{kept:>4}", row.name);
    }
    assert!(table == expected, "the table of allocations differs; now it is\n{table}");
}
