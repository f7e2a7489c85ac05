//! The page table as its users see it.

use crate::format::{AccessedDirty, Config, ConfigError, Format, Geometry, Scheme, low_bits};
use crate::single::Short;
use crate::tree::{Traits, Tree};
use core::marker::PhantomData;
use core::ops::Deref;
use portcullis_hal::{
    Access, Attributes, Gather, Hal, Iova, IovaRange, MapError, Mapping, MemoryKind, PhysAddr, TableFormat,
    TableRoot, Translated, UnmapError, barrier,
};

/// A page table of format `F`, which owns its tables.
///
/// # Hardware
///
/// [`root`](AnyTable::root) is a plain value; who gives it to hardware sees to it that no hardware walks the table,
/// nor caches anything of it, any more when the table is dropped. Where hardware did not confirm that,
/// [`quarantine`](Self::quarantine) keeps the tables allocated for ever.
///
/// # Concurrency
///
/// All methods but [`trim`](AnyTable::trim) work on a shared table, without a lock; distinct ranges can be mapped
/// and unmapped at the same time by any number of CPUs. If calls on overlapping ranges race, nothing outside of
/// these ranges changes and no freed memory is touched, but which of the calls wins, and where, is left open,
/// and tables may be lost until the end of the program.
///
/// A call that finds another one in progress cannot cut off tables and clears the entries one by one instead.
#[derive(Debug)]
pub struct PageTable<H: Hal, F: Format> {
    any: AnyTable<H>,
    format: PhantomData<F>,
}

/// A [`PageTable`] of whatever format: what need not be fast for single pages is the same code for all.
#[derive(Debug)]
pub struct AnyTable<H: Hal> {
    pub(crate) tree: Tree<H>,
    format: TableFormat,
    short: Short<H>,
    pub(crate) page_sizes: u64,
    /// The bytes of the smallest run of pages that gets the contiguous hint; `u64::MAX` if none does.
    pub(crate) shortest_run: u64,
    pub(crate) last_iova: u64,
    pub(crate) last_phys: u64,
    pub(crate) seals: Seals,
    input_bits: u8,
    output_bits: u8,
}

impl<H: Hal, F: Format> PageTable<H, F> {
    /// An empty table.
    pub fn new(hal: &H, format: F, config: Config) -> Result<Self, ConfigError> {
        let geometry = format.geometry(config.input_bits)?;
        let traits = Traits {
            scheme: format.scheme(),
            replacement: format.replacement(),
            accessed_dirty: format.accessed_dirty(),
        };
        let any =
            AnyTable::new(hal, traits, Short::of::<F>(), format.table_format(geometry), geometry, config)?;
        Ok(Self { any, format: PhantomData })
    }

    /// As [`AnyTable::map`], with the format known.
    #[inline]
    pub fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        self.any.map_one::<F>(list)
    }

    /// As [`AnyTable::unmap`], with the format known.
    #[inline(always)]
    pub fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        self.any.unmap_short::<F>(range, gather)
    }

    /// As [`AnyTable::trim`].
    pub fn trim(&mut self, gather: &mut Gather) -> usize {
        self.any.trim(gather)
    }

    /// As [`AnyTable::quarantine`].
    pub fn quarantine(self) {
        self.any.quarantine();
    }

    /// The table, for those who hold tables of several formats.
    pub fn into_any(self) -> AnyTable<H> {
        self.any
    }
}

/// Not mutably: a table put in the place of this one could have another format.
///
/// ```compile_fail,E0596
/// use portcullis_hal::host::HostHal;
/// use portcullis_pgtable::{PageTable, VmsaStage1, X86};
///
/// fn exchange(a: &mut PageTable<HostHal, X86>, b: &mut PageTable<HostHal, VmsaStage1<12>>) {
///     core::mem::swap(&mut **a, &mut **b);
/// }
/// ```
impl<H: Hal, F: Format> Deref for PageTable<H, F> {
    type Target = AnyTable<H>;

    #[inline(always)]
    fn deref(&self) -> &AnyTable<H> {
        &self.any
    }
}

impl<H: Hal> AnyTable<H> {
    fn new(
        hal: &H,
        traits: Traits,
        short: Short<H>,
        format: TableFormat,
        geometry: Geometry,
        config: Config,
    ) -> Result<Self, ConfigError> {
        let scheme = traits.scheme;
        let output_bits = config.output_bits.min(scheme.output_bits);
        if u32::from(output_bits) <= scheme.granule_shift {
            return Err(ConfigError::OutputBits(config.output_bits));
        }
        let page_sizes = usable_sizes(&scheme, config.page_sizes, output_bits);
        if page_sizes & scheme.level_size(0) == 0 {
            return Err(ConfigError::PageSizes(config.page_sizes));
        }
        let run = scheme.run_size(0);
        let runs = scheme.run_shift(0) != 0 && page_sizes & run != 0;
        let last_iova = low_bits(u32::from(geometry.aperture_bits));
        let last_phys = low_bits(u32::from(output_bits));
        let seals = Seals::new(&scheme, traits.accessed_dirty);
        Ok(Self {
            tree: Tree::new(hal, traits, geometry, config.writes, PhysAddr::new(last_phys))?,
            format,
            short,
            page_sizes,
            shortest_run: if runs { run } else { u64::MAX },
            last_iova,
            last_phys,
            seals,
            input_bits: config.input_bits,
            output_bits,
        })
    }

    /// How entries are encoded.
    #[inline(always)]
    pub(crate) fn scheme(&self) -> &Scheme {
        &self.tree.scheme
    }

    /// What a walker has to know.
    pub fn root(&self) -> TableRoot {
        TableRoot {
            format: self.format,
            root: self.tree.root_address(),
            input_bits: self.input_bits,
            output_bits: self.output_bits,
            page_sizes: self.page_sizes,
            writes: self.tree.writes,
        }
    }

    /// The addresses that can be mapped.
    pub fn aperture(&self) -> IovaRange {
        IovaRange::block(Iova::new(0), self.last_iova.wrapping_add(1))
    }

    /// The page sizes in use, as a bit mask in bytes; those of runs under the contiguous hint among them.
    pub fn page_sizes(&self) -> u64 {
        self.page_sizes
    }

    /// Maps all pieces of `list`, or none of them, with the largest pages that alignment and
    /// [`page_sizes`](Self::page_sizes) permit.
    ///
    /// When the call returns, the mapping is visible to a walker that looks because of a later store or register
    /// write of this CPU. When it fails, no walker has seen any part of it; tables that were installed for it
    /// stay, empty, until a [`trim`](Self::trim). A place whose table was left empty by earlier unmaps is filled
    /// with the smaller pages of that table. Runs of pages get the contiguous hint where their size is among the
    /// sizes; they are then mapped and unmapped as a whole, as one page is.
    ///
    /// # Errors
    ///
    /// [`Misaligned`](MapError::Misaligned), [`OutOfRange`](MapError::OutOfRange) (the address beyond the
    /// aperture, or the memory beyond the output width), [`Attributes`](MapError::Attributes),
    /// [`Overlap`](MapError::Overlap) with what is mapped or within the list, and
    /// [`OutOfMemory`](MapError::OutOfMemory).
    pub fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        (self.short.map)(self, list)
    }

    /// Takes out what is mapped in `range` and returns how many bytes that was. Not all of the range needs to
    /// be mapped.
    ///
    /// The addresses taken out and the smallest page among them are recorded in `gather`. Tables that lie wholly
    /// in the range move to [`Gather::tables`]; they are free again after the sync. The caller has claimed the
    /// gather for this table, and invalidates.
    ///
    /// # Errors
    ///
    /// [`Misaligned`](UnmapError::Misaligned), [`OutOfRange`](UnmapError::OutOfRange), and
    /// [`Partial`](UnmapError::Partial) if a larger page, or a run under the contiguous hint, reaches out of the range.
    /// Nothing has changed then; [`split_ends`](Self::split_ends) makes way for such a range.
    pub fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        (self.short.unmap)(self, range, gather)
    }

    /// Where `iova` leads by the tables in memory; hardware may still know an older answer.
    pub fn translate(&self, iova: Iova) -> Option<Translated> {
        if iova.get() > self.last_iova {
            return None;
        }
        let scheme = self.scheme();
        let (leaf, level) = self.tree.walk().leaf(iova.get())?;
        let offset = iova.get() & scheme.level_size(level).wrapping_sub(1);
        Some(Translated {
            phys: PhysAddr::new(scheme.leaf_address(leaf, level).get() | offset),
            attributes: (scheme.attributes)(leaf),
            size: scheme.extent(leaf, level),
        })
    }

    /// Takes out all tables in which nothing is mapped and returns how many these were.
    ///
    /// They move to [`Gather::tables`] and are free again after the sync; the gather records the whole aperture.
    /// The caller has claimed the gather for this table, and invalidates. If the gather holds tables of another
    /// size, nothing is done.
    pub fn trim(&mut self, gather: &mut Gather) -> usize {
        let count = self.tree.trim(gather);
        if count != 0 {
            barrier::publish_to_device();
            gather.record(self.aperture(), self.scheme().granule_shift as u8);
        }
        count
    }

    /// Gives the table up without freeing it, because hardware may still walk it.
    pub fn quarantine(self) {
        core::mem::forget(self);
    }
}

/// The sizes out of `wanted` that a format has, of single leaves and of runs of such leaves.
fn usable_sizes(scheme: &Scheme, wanted: u64, output_bits: u8) -> u64 {
    let single = scheme.leaf_sizes(output_bits) & wanted;
    (0..scheme.leaf_levels)
        .filter(|&level| single & scheme.level_size(level) != 0 && scheme.contiguous != 0)
        .fold(single, |sizes, level| sizes | wanted & scheme.run_size(level))
}

/// The attribute bits of leaves, worked out once for all attributes; zero where the format cannot express them.
#[derive(Debug)]
pub(crate) struct Seals([u64; 3 << Self::ACCESS_BITS]);

impl Seals {
    /// The bits of [`Access`].
    const ACCESS_BITS: u32 = 3;
    const KINDS: [MemoryKind; 3] = [MemoryKind::WriteBack, MemoryKind::NonCacheable, MemoryKind::Device];

    fn new(scheme: &Scheme, accessed_dirty: AccessedDirty) -> Self {
        let mut seals = Self([0; 3 << Self::ACCESS_BITS]);
        for memory in Self::KINDS {
            for bits in 0..1 << Self::ACCESS_BITS {
                let attributes = Attributes { access: Access::from_bits_truncate(bits), memory };
                if let Some(seal) = seals.0.get_mut(Self::index(attributes)) {
                    *seal = (scheme.attribute_bits)(attributes, accessed_dirty).unwrap_or(0);
                }
            }
        }
        seals
    }

    #[inline]
    fn index(attributes: Attributes) -> usize {
        let kind = match attributes.memory {
            MemoryKind::WriteBack => 0,
            MemoryKind::NonCacheable => 1,
            MemoryKind::Device => 2,
        };
        kind << Self::ACCESS_BITS | usize::from(attributes.access.bits() & Access::all().bits())
    }

    /// The bits that express `attributes`.
    #[inline]
    pub(crate) fn get(&self, attributes: Attributes) -> Option<u64> {
        self.0.get(Self::index(attributes)).copied().filter(|&seal| seal != 0)
    }
}
