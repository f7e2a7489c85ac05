//! What a run does: operations as data, so that they can be replayed and dropped one by one.

use portcullis_model::core::Prng;

/// What becomes of an unmap's invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// It is done at once.
    Strict,
    /// It waits for the domain's next [`Op::Sync`].
    Gathered,
}

/// A place for mappings: numbers from which addresses are made when the operation is carried out, since what is possible
/// depends on the domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) window: u8,
    pub(crate) offset: u8,
    pub(crate) size: u8,
}

/// An operation. Indices are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Makes a domain.
    New { slot: u8, kind: u8 },
    /// Lets go of a domain, whether or not devices are attached to it.
    Drop { slot: u8 },
    /// Maps a list of pieces.
    Map { slot: u8, place: Place, pieces: u8, step: u8, access: u8, aligned: bool },
    /// Unmaps around a mapping.
    Unmap { slot: u8, pick: u8, shape: u8, place: Place, sync: Sync },
    /// Changes the sizes of leaves.
    Resize { slot: u8, pick: u8, shape: u8, place: Place, how: u8, sync: Sync },
    /// Collects what the unit noted in leaves.
    Harvest { slot: u8, how: u8, sync: Sync },
    /// Maps frames by value.
    Lend { slot: u8, offset: u8, order: u8 },
    /// Takes frames back.
    Reclaim { slot: u8, pick: u8, sync: Sync },
    /// Syncs the domain's gather.
    Sync { slot: u8 },
    /// Attaches one device or several to a domain.
    Attach { device: u8, count: u8, slot: u8 },
    /// Detaches one device or several.
    Detach { device: u8, count: u8 },
    /// Attaches a PASID of one device or several to a domain.
    AttachPasid { device: u8, count: u8, slot: u8, pasid: u8 },
    /// Detaches a PASID of one device or several.
    DetachPasid { device: u8, count: u8, pasid: u8 },
    /// Sets what one device or several may do.
    Permit { device: u8, count: u8, bits: u8, requests: u8 },
    /// A device issues a request.
    Dma { device: u8, point: u8, kind: u8, mode: u8 },
    /// A device issues requests until the fault log overflows.
    Storm { device: u8, count: u8 },
    /// A device asks for pages.
    Ask { device: u8, shape: u8 },
    /// Some of those who asked get their answers.
    Answer { pick: u8, count: u8, code: u8 },
    /// Page requests of one device or several are drained.
    Drain { device: u8, count: u8 },
    /// The interrupt of faults and page requests is handled.
    Interrupt,
    /// A device confirms an invalidation that nobody asked for (ICE).
    Stray { device: u8 },
    /// An allocation of the next operation fails.
    Short { after: u8 },
    /// The unit becomes more or less prompt.
    Mood { mood: u8 },
    /// A descriptor cannot be fetched (IQE).
    Refuse { after: u8 },
    /// A device does not confirm an invalidation, and the unit does not wait for long (ITE).
    Deaf,
    /// The queue hangs during the next operation.
    Hang,
    /// A wait never completes.
    Lose,
}

impl Op {
    /// The same operation, if it needs a domain, on another slot.
    pub(crate) fn on(mut self, occupied: impl Fn(u8) -> u8) -> Self {
        match &mut self {
            Self::Drop { slot }
            | Self::Map { slot, .. }
            | Self::Unmap { slot, .. }
            | Self::Resize { slot, .. }
            | Self::Harvest { slot, .. }
            | Self::Lend { slot, .. }
            | Self::Reclaim { slot, .. }
            | Self::Sync { slot }
            | Self::Attach { slot, .. }
            | Self::AttachPasid { slot, .. } => *slot = occupied(*slot),
            _ => {}
        }
        self
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::New { .. } => "new domain",
            Self::Drop { .. } => "drop domain",
            Self::Map { .. } => "map",
            Self::Unmap { sync: Sync::Strict, .. } => "unmap, strict",
            Self::Unmap { .. } => "unmap, gathered",
            Self::Resize { .. } => "resize",
            Self::Harvest { .. } => "harvest",
            Self::Lend { .. } => "map by value",
            Self::Reclaim { sync: Sync::Strict, .. } => "reclaim, strict",
            Self::Reclaim { .. } => "reclaim, gathered",
            Self::Sync { .. } => "sync",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::AttachPasid { .. } => "attach PASID",
            Self::DetachPasid { .. } => "detach PASID",
            Self::Permit { .. } => "permit",
            Self::Dma { .. } => "dma",
            Self::Storm { .. } => "fault storm",
            Self::Ask { .. } => "ask for pages",
            Self::Answer { .. } => "answer",
            Self::Drain { .. } => "drain",
            Self::Interrupt => "interrupt",
            Self::Stray { .. } => "stray completion",
            Self::Short { .. } => "out of memory armed",
            Self::Mood { .. } => "mood",
            Self::Refuse { .. } => "fetch error armed",
            Self::Deaf => "deaf device armed",
            Self::Hang => "hang armed",
            Self::Lose => "lost wait armed",
        }
    }
}

/// How rough a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Roughness {
    /// Late answers, faults and short memory.
    Mild,
    /// Refused descriptors and stray completions too.
    Errors,
    /// And the unit ends its life by not answering.
    Fatal,
}

/// An operation and the seed of what hardware does meanwhile.
pub(crate) type Step = (u64, Op);

fn place(prng: &mut Prng) -> Place {
    let mut byte = || prng.next_u64() as u8;
    Place { window: byte(), offset: byte(), size: byte() }
}

/// The operations of a run.
pub(crate) fn generate(seed: u64, count: usize, roughness: Roughness) -> Vec<Step> {
    let mut prng = Prng::new(seed);
    // Domains and attachments first, so that there is something to work with.
    let mut steps: Vec<Step> = (0..4).map(|slot| Op::New { slot, kind: slot }).map(|op| (0, op)).collect();
    for _ in steps.len()..count {
        let nonce = prng.next_u64();
        steps.push((nonce, one(&mut prng, roughness)));
    }
    steps
}

fn one(prng: &mut Prng, roughness: Roughness) -> Op {
    let mut byte = || prng.next_u64() as u8;
    let [a, b, c, d] = [byte(), byte(), byte(), byte()];
    let sync = if c & 3 == 0 { Sync::Gathered } else { Sync::Strict };
    match prng.below(1060) {
        0..210 => {
            let pieces = if b & 3 == 0 { 2 + (b >> 2) % 3 } else { 1 };
            Op::Map { slot: a, place: place(prng), pieces, step: c, access: d, aligned: b & 0x30 != 0 }
        }
        210..330 => Op::Unmap { slot: a, pick: b, shape: d, place: place(prng), sync },
        330..365 => {
            let how = prng.next_u64() as u8;
            Op::Resize { slot: a, pick: b, shape: d, place: place(prng), how, sync }
        }
        365..380 => Op::Harvest { slot: a, how: b, sync },
        380..420 => Op::Lend { slot: a, offset: b, order: d },
        420..460 => Op::Reclaim { slot: a, pick: b, sync },
        460..490 => Op::Sync { slot: a },
        490..610 => Op::Attach { device: a, count: several(b), slot: c },
        610..690 => Op::AttachPasid { device: a, count: several(b), slot: c, pasid: d },
        690..710 => Op::DetachPasid { device: a, count: several(b), pasid: d },
        710..740 => Op::Permit { device: a, count: several(b), bits: c, requests: d },
        740..770 => Op::Detach { device: a, count: several(b) },
        770..815 => Op::New { slot: a, kind: b },
        815..840 => Op::Drop { slot: a },
        840..920 => Op::Dma { device: a, point: b, kind: c, mode: d },
        920..930 => Op::Storm { device: a, count: b },
        930..960 => Op::Interrupt,
        960..980 => Op::Short { after: a },
        980..986 => Op::Mood { mood: a },
        986..992 if roughness != Roughness::Mild => Op::Refuse { after: a },
        992..995 if roughness != Roughness::Mild => Op::Stray { device: a },
        995..996 if roughness == Roughness::Fatal => Op::Hang,
        996..997 if roughness == Roughness::Fatal => Op::Lose,
        997..1000 if roughness != Roughness::Mild => Op::Deaf,
        1000..1030 => Op::Ask { device: a, shape: b },
        1030..1053 => Op::Answer { pick: a, count: b, code: c },
        1053..1057 => Op::Drain { device: a, count: several(b) },
        1057..1060 => Op::Interrupt,
        _ => Op::Dma { device: a, point: b, kind: c, mode: d },
    }
}

/// How many devices an operation is about: one, or now and then two.
fn several(byte: u8) -> u8 {
    1 + u8::from(byte & 7 == 0)
}
