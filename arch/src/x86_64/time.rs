//! The clock: the time-stamp counter.
//!
//! Its frequency comes from CPUID leaf 0x15 (SDM vol. 3, 20.7.3) or a hypervisor's leaf 0x4000_0010 where they state
//! it, and is otherwise measured against the PIT. All CPUs of a machine are taken to count in step, as they do under
//! QEMU and wherever CPUID reports an invariant TSC.

#![expect(unsafe_code, reason = "reads the time-stamp counter and drives the PIT")]

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::instructions::port::Port;

/// Nanoseconds per tick, times 2^32.
static SCALE: AtomicU64 = AtomicU64::new(0);
/// The counter when the clock was set up.
static START: AtomicU64 = AtomicU64::new(0);

const NS_PER_SECOND: u64 = 1_000_000_000;
const PIT_HZ: u64 = 1_193_182;
/// About 10 ms of PIT ticks.
const PIT_COUNT: u16 = 11_932;
/// Port reads before a PIT that does not count is given up: ten times what the slowest bus needs for 10 ms.
const MAX_POLLS: u32 = 1_000_000;
/// Taken where no source tells: QEMU's counter under `-icount` runs at this rate.
const FALLBACK_HZ: u64 = NS_PER_SECOND;

/// Monotonic nanoseconds since boot; zero until the boot code has set the clock up.
pub fn now_ns() -> u64 {
    let ticks = ticks().saturating_sub(START.load(Ordering::Relaxed));
    let scaled = u128::from(ticks) * u128::from(SCALE.load(Ordering::Relaxed));
    (scaled >> 32) as u64
}

/// Finds the counter's frequency and starts the clock at zero. Once, on the boot CPU.
pub(super) fn init() {
    let hz = hz_from_cpuid().or_else(hz_from_pit).unwrap_or(FALLBACK_HZ);
    START.store(ticks(), Ordering::Relaxed);
    SCALE.store((NS_PER_SECOND << 32) / hz, Ordering::Relaxed);
}

/// The counter, read after all earlier loads (SDM vol. 2, RDTSC).
fn ticks() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter; CR4.TSD is off.
    unsafe {
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

fn hz_from_cpuid() -> Option<u64> {
    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid(0x15);
        let crystal = u64::from(leaf.ecx);
        let hz = (crystal * u64::from(leaf.ebx)).checked_div(u64::from(leaf.eax));
        if let Some(hz) = hz.filter(|&hz| hz != 0) {
            return Some(hz);
        }
    }
    let under_hypervisor = __cpuid(1).ecx & 1 << 31 != 0;
    if under_hypervisor && __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = u64::from(__cpuid(0x4000_0010).eax);
        return Some(khz * 1000).filter(|&hz| hz != 0);
    }
    None
}

/// The best of three measurements: a delay anywhere only adds ticks.
fn hz_from_pit() -> Option<u64> {
    let ticks = (0..3).filter_map(|_| ticks_per_pit_run()).min()?;
    let hz = u128::from(ticks) * u128::from(PIT_HZ) / u128::from(PIT_COUNT);
    u64::try_from(hz).ok().filter(|&hz| hz != 0)
}

/// Lets PIT channel 2 count down once (8254, mode 0) and returns the ticks that took.
fn ticks_per_pit_run() -> Option<u64> {
    let mut command = Port::<u8>::new(0x43);
    let mut channel2 = Port::<u8>::new(0x42);
    let mut gate = Port::<u8>::new(0x61);
    let [low, high] = PIT_COUNT.to_le_bytes();
    // SAFETY: the PIT and its gate are at fixed ports of a PC and only this function uses channel 2. Gate on,
    // speaker off; channel 2, low byte then high byte, mode 0.
    unsafe {
        let old = gate.read();
        gate.write(old & !0b10 | 0b01);
        command.write(0b1011_0000);
        channel2.write(low);
    }
    // Before the count starts, not after: a virtual CPU may lose its turn in between, and the clock would run ahead by
    // as much as the measurement is too short.
    let start = ticks();
    // SAFETY: as above; the high byte starts the count.
    unsafe { channel2.write(high) };
    // SAFETY: as above; bit 5 is the channel's output, which goes high when the count is over.
    let finished = (0..MAX_POLLS).any(|_| unsafe { gate.read() } & 1 << 5 != 0);
    finished.then(|| ticks().saturating_sub(start))
}
