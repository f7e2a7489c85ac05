//! Operations, drawn from a seed. Their parameters are random numbers that mean something only in the state that
//! the operation finds, so that any part of a sequence is a sequence too.

use portcullis_model::core::Prng;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    NewDomain,
    DropDomain,
    Map,
    Unmap,
    UnmapLater,
    Sync,
    Attach,
    Detach,
    Block,
    Dma,
    Storm,
    Interrupt,
    Pace,
    Describe,
    Bad,
    Restart,
    Churn,
    Permit,
    AttachPasid,
    DetachPasid,
    Resize,
    Harvest,
    Ask,
    Answer,
}

/// What goes wrong meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// The n-th allocation fails.
    OutOfMemory(u8),
    /// The n-th command from now on is refused.
    Illegal(u8),
    /// The n-th fetch of a command from now on fails, so many times.
    Unreadable(u8, u8),
    /// The unit consumes no commands.
    Hang,
    /// A device does not confirm an invalidation, and the unit does not wait for it for long.
    Deaf,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) act: Act,
    pub(crate) trouble: Trouble,
    /// Parameters.
    pub(crate) with: [u64; 4],
    /// Decides what happens meanwhile.
    pub(crate) seed: u64,
}

const WEIGHTS: [(Act, u64); 24] = [
    (Act::Map, 240),
    (Act::Unmap, 130),
    (Act::UnmapLater, 90),
    (Act::Sync, 60),
    (Act::Attach, 160),
    (Act::Detach, 18),
    (Act::Block, 12),
    (Act::NewDomain, 50),
    (Act::DropDomain, 35),
    (Act::Dma, 130),
    (Act::Storm, 8),
    (Act::Interrupt, 40),
    (Act::Pace, 8),
    (Act::Describe, 3),
    (Act::Bad, 15),
    (Act::Restart, 3),
    (Act::Churn, 3),
    (Act::Permit, 40),
    (Act::AttachPasid, 90),
    (Act::DetachPasid, 25),
    (Act::Resize, 70),
    (Act::Harvest, 50),
    (Act::Ask, 40),
    (Act::Answer, 25),
];

/// Whether a seed's sequence has failures of the hardware in it. In the others nothing may leak.
pub(crate) fn troubled(seed: u64) -> bool {
    seed % 3 == 2
}

/// The operations of a seed.
pub(crate) fn operations(seed: u64, count: usize) -> Vec<Op> {
    let mut prng = Prng::new(seed ^ 0x0b5e_55ed);
    (0..count)
        .map(|_| {
            let act = act(&mut prng);
            let trouble = trouble(&mut prng, act, troubled(seed));
            let with = std::array::from_fn(|_| prng.next_u64());
            Op { act, trouble, with, seed: prng.next_u64() }
        })
        .collect()
}

fn act(prng: &mut Prng) -> Act {
    let mut at = prng.below(WEIGHTS.iter().map(|weight| weight.1).sum());
    for (act, weight) in WEIGHTS {
        if at < weight {
            return act;
        }
        at -= weight;
    }
    Act::Dma
}

fn trouble(prng: &mut Prng, act: Act, troubled: bool) -> Trouble {
    let waits = matches!(act, Act::Unmap | Act::Resize | Act::Sync | Act::Attach | Act::Detach | Act::Block);
    let nth = |prng: &mut Prng, bound| prng.below(bound) as u8;
    match prng.below(1000) {
        0..80 if !waits || matches!(act, Act::Attach | Act::Resize) => Trouble::OutOfMemory(nth(prng, 5)),
        80..87 if waits && troubled => Trouble::Illegal(nth(prng, 6)),
        87..90 if waits && troubled => Trouble::Unreadable(nth(prng, 4), 6),
        90..94 if waits && troubled => Trouble::Hang,
        104..120 if waits && troubled => Trouble::Deaf,
        // Three failures in a row are borne.
        94..104 if waits || act == Act::Answer => Trouble::Unreadable(nth(prng, 4), 1 + nth(prng, 3)),
        _ => Trouble::None,
    }
}
