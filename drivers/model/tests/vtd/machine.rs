//! A unit with hand-made tables: raw words only, nothing of the model's decoders.

use std::sync::Arc;

use portcullis_model::core::{
    AddressKind, Downstream, Mode, Outcome, PageRequest, Ram, Request, Response, Schedule, Upstream,
};
use portcullis_model::vtd::{Config, Vtd};

pub(crate) const ROOT: u64 = 0x1_0000;
pub(crate) const CONTEXTS: u64 = 0x1_1000;
pub(crate) const DIRECTORY: u64 = 0x2_0000;
pub(crate) const PASIDS: u64 = 0x2_1000;
pub(crate) const FIRST: u64 = 0x3_0000;
pub(crate) const SECOND: u64 = 0x4_0000;
pub(crate) const QUEUE: u64 = 0x5_0000;
pub(crate) const STATUS: u64 = 0x5_f000;
pub(crate) const REQUESTS: u64 = 0x6_0000;

/// 00:03.0.
pub(crate) const DEVICE: u32 = 0x18;
/// The context entry of [`DEVICE`].
pub(crate) const CONTEXT: u64 = CONTEXTS + 0x18 * 32;

pub(crate) const RTADDR: u64 = 0x20;
pub(crate) const GCMD: u64 = 0x18;
pub(crate) const GSTS: u64 = 0x1c;
pub(crate) const FSTS: u64 = 0x34;
pub(crate) const IQH: u64 = 0x80;
pub(crate) const IQT: u64 = 0x88;
pub(crate) const IQA: u64 = 0x90;
pub(crate) const IQERCD: u64 = 0xb0;
pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const WBF: u32 = 1 << 27;
pub(crate) const QIE: u32 = 1 << 26;

/// P, PWSNP and a domain id, for a second-stage entry of four levels.
pub(crate) fn second_stage(domain: u64, table: u64) -> [u64; 8] {
    [table | 2 << 6 | 2 << 2 | 1, domain | 1 << 23, 0, 0, 0, 0, 0, 0]
}

/// A four-level first-stage entry.
pub(crate) fn first_stage(domain: u64, table: u64) -> [u64; 8] {
    [1 << 6 | 1, domain | 1 << 23, table, 0, 0, 0, 0, 0]
}

/// A nested entry, four levels in both stages.
pub(crate) fn nested(domain: u64, first: u64, second: u64) -> [u64; 8] {
    [second | 3 << 6 | 2 << 2 | 1, domain | 1 << 23, first, 0, 0, 0, 0, 0]
}

/// A pass-through entry.
pub(crate) fn pass_through(domain: u64) -> [u64; 8] {
    [4 << 6 | 2 << 2 | 1, domain | 1 << 23, 0, 0, 0, 0, 0, 0]
}

/// How many seeds a random test runs: `PORTCULLIS_SEEDS`, or a number that takes well under a second.
pub(crate) fn seeds(default: u64) -> u64 {
    std::env::var("PORTCULLIS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub(crate) struct Machine {
    pub(crate) ram: Arc<Ram>,
    pub(crate) unit: Arc<Vtd>,
    pub(crate) schedule: Arc<Schedule>,
    tail: std::cell::Cell<u64>,
    ticket: std::cell::Cell<u32>,
}

impl Machine {
    /// Tables for [`DEVICE`] with an absent PASID entry 0, and a unit that is still off.
    pub(crate) fn cold(config: Config) -> Self {
        let (ram, schedule) = (Arc::new(Ram::new()), Arc::new(Schedule::new(7)));
        let unit = Arc::new(Vtd::new(config, ram.clone(), schedule.clone()));
        let machine = Self { ram, unit, schedule, tail: Default::default(), ticket: Default::default() };
        machine.put(ROOT, &[CONTEXTS | 1, 0]);
        // P, DTE, PASIDE, PRE: as far as the unit has them.
        let ecap = config.ecap;
        let flags = (ecap >> 2 & 1) << 2 | (ecap >> 40 & 1) << 3 | (ecap >> 29 & 1) << 4;
        machine.put(CONTEXT, &[DIRECTORY | flags | 1, 0, 0, 0]);
        machine.put(DIRECTORY, &[PASIDS | 1]);
        machine
    }

    /// The same, translating, with a 256-bit queue of one page.
    pub(crate) fn new(config: Config) -> Self {
        let machine = Self::cold(config);
        machine.unit.write64(IQA, QUEUE | 1 << 11);
        machine.unit.write32(GCMD, QIE);
        machine.unit.write64(RTADDR, ROOT | 1 << 10);
        machine.unit.write32(GCMD, QIE | SRTP);
        machine.unit.write32(GCMD, QIE | TE);
        assert_eq!(machine.unit.read32(GSTS) & (TE | SRTP | QIE), TE | SRTP | QIE);
        machine.clean();
        machine
    }

    pub(crate) fn full() -> Self {
        Self::new(Config::full())
    }

    /// Stores words and cleans them to memory.
    pub(crate) fn put(&self, address: u64, words: &[u64]) {
        for (at, &word) in (address..).step_by(8).zip(words) {
            self.ram.store(at, word);
        }
        self.ram.clean(address, words.len() as u64 * 8);
    }

    /// Writes a PASID table entry, the present bit last.
    pub(crate) fn pasid(&self, pasid: u64, entry: [u64; 8]) {
        let at = PASIDS + pasid * 64;
        self.put(at, &[0]);
        self.put(at + 8, &entry[1..]);
        self.put(at, &entry[..1]);
    }

    /// Second-stage tables at `base`, one page per level from the top, that span the first 2 MiB.
    pub(crate) fn second_tables(&self, base: u64, levels: u64) {
        for level in 0..levels - 1 {
            self.put(base + level * 0x1000, &[(base + (level + 1) * 0x1000) | 3]);
        }
    }

    /// The slot of a page in the last table of tables made by [`Machine::second_tables`] or
    /// [`Machine::first_tables`].
    pub(crate) fn slot(base: u64, levels: u64, page: u64) -> u64 {
        base + (levels - 1) * 0x1000 + page * 8
    }

    /// First-stage tables: present, writable, user, accessed.
    pub(crate) fn first_tables(&self, base: u64, levels: u64) {
        for level in 0..levels - 1 {
            self.put(base + level * 0x1000, &[(base + (level + 1) * 0x1000) | 0x27]);
        }
    }

    pub(crate) fn dma(&self, request: Request, mode: Mode) -> Outcome {
        self.unit.dma(request, mode).outcome
    }

    pub(crate) fn read(&self, address: u64) -> Outcome {
        self.dma(Request::read(DEVICE, address), Mode::Fresh)
    }

    pub(crate) fn write(&self, address: u64) -> Outcome {
        self.dma(Request::write(DEVICE, address), Mode::Fresh)
    }

    pub(crate) fn reach(&self, request: Request) -> Vec<Outcome> {
        self.unit.reachable(request).into_iter().collect()
    }

    /// What a read of [`DEVICE`] may end with.
    pub(crate) fn reads(&self, address: u64) -> Vec<Outcome> {
        self.reach(Request::read(DEVICE, address))
    }

    /// Puts 256-bit descriptors into the queue.
    pub(crate) fn submit(&self, descriptors: &[[u64; 2]]) {
        for descriptor in descriptors {
            let tail = self.tail.get();
            self.put(QUEUE + tail, &[descriptor[0], descriptor[1], 0, 0]);
            self.tail.set((tail + 32) % 4096);
        }
        self.unit.write64(IQT, self.tail.get());
    }

    /// Starts over with an empty queue, as after disabling it.
    pub(crate) fn rewind(&self) {
        self.tail.set(0);
    }

    /// A wait descriptor that writes a fresh ticket to [`STATUS`].
    pub(crate) fn ticket(&self) -> (u32, [u64; 2]) {
        let ticket = self.ticket.get() + 1;
        self.ticket.set(ticket);
        (ticket, [u64::from(ticket) << 32 | 1 << 5 | 5, STATUS])
    }

    /// Submits and waits; gives whether the wait completed.
    pub(crate) fn sync(&self, descriptors: &[[u64; 2]]) -> bool {
        let (ticket, wait) = self.ticket();
        self.submit(descriptors);
        self.submit(&[wait]);
        self.unit.settle(10);
        self.done(ticket)
    }

    pub(crate) fn done(&self, ticket: u32) -> bool {
        self.ram.load(STATUS) as u32 == ticket
    }

    /// No rule was broken.
    pub(crate) fn clean(&self) {
        assert_eq!(self.unit.take_violations(), []);
    }

    /// The names of the rules that were broken.
    pub(crate) fn broken(&self) -> Vec<&'static str> {
        self.unit.take_violations().iter().map(|violation| violation.rule).collect()
    }

    /// A device with an ATC is there.
    pub(crate) fn connect(&self) {
        self.unit.connect(DEVICE);
    }

    pub(crate) fn messages(&self) -> Vec<Downstream> {
        self.unit.take_messages(DEVICE)
    }

    /// Confirms all ATC invalidations; gives their tags.
    pub(crate) fn confirm(&self) -> Vec<u32> {
        let tags: Vec<u32> = self
            .messages()
            .iter()
            .filter_map(|message| match message {
                Downstream::Invalidate(invalidation) => Some(invalidation.tag),
                Downstream::PageResponse(_) => None,
            })
            .collect();
        for &tag in &tags {
            self.unit.invalidation_done(DEVICE, tag);
        }
        tags
    }
}

/// A read of PASID 9 for a page, the last of group 3.
pub(crate) fn page_request(address: u64) -> PageRequest {
    PageRequest {
        requester: DEVICE,
        pasid: Some(9),
        address,
        read: true,
        write: false,
        execute: false,
        privileged: false,
        last: true,
        group: 3,
    }
}

pub(crate) fn translation_request(address: u64) -> Request {
    Request::read(DEVICE, address).with_kind(AddressKind::TranslationRequest)
}

pub(crate) fn outcome(response: Response) -> Outcome {
    response.outcome
}

/// IOTLB, domain-selective.
pub(crate) const fn flush_domain(domain: u64) -> [u64; 2] {
    [domain << 16 | 2 << 4 | 2, 0]
}

/// IOTLB, `1 << mask` pages of a domain; `hint` is IH.
pub(crate) const fn flush_pages(domain: u64, address: u64, mask: u64, hint: u64) -> [u64; 2] {
    [domain << 16 | 3 << 4 | 2, address | hint << 6 | mask]
}

/// PASID-based IOTLB, all of a PASID.
pub(crate) const fn flush_pasid(domain: u64, pasid: u64) -> [u64; 2] {
    [pasid << 32 | domain << 16 | 2 << 4 | 6, 0]
}

/// PASID-based IOTLB, pages.
pub(crate) const fn flush_pasid_pages(
    domain: u64,
    pasid: u64,
    address: u64,
    mask: u64,
    hint: u64,
) -> [u64; 2] {
    [pasid << 32 | domain << 16 | 3 << 4 | 6, address | hint << 6 | mask]
}

/// PASID cache, one PASID of a domain.
pub(crate) const fn forget_pasid(domain: u64, pasid: u64) -> [u64; 2] {
    [pasid << 32 | domain << 16 | 1 << 4 | 7, 0]
}

/// Context cache, one requester.
pub(crate) const fn forget_context(requester: u32) -> [u64; 2] {
    [(requester as u64) << 32 | 3 << 4 | 1, 0]
}

/// Device TLB, one page.
pub(crate) const fn flush_device(requester: u32, address: u64) -> [u64; 2] {
    [(requester as u64) << 32 | 3, address]
}
