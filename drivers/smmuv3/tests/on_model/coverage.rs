//! What a run has to exercise: a third of what the fixed seeds do, or less.

use std::collections::BTreeMap;

/// Buckets, and how often each is reached at least in a normal run.
const MINIMA: &[(&str, u64)] = &[
    // Operations and what came of them.
    ("Restart", 150),
    ("churned", 60),
    ("mapped", 8000),
    ("out of memory", 200),
    ("refused attributes", 500),
    ("refused overlap", 1500),
    ("refused partial", 30),
    ("refused range", 500),
    ("sync failed", 10),
    ("change not confirmed", 20),
    ("attach refused: out of service", 10),
    ("injected fetch abort", 150),
    ("injected hang", 20),
    ("injected illegal command", 30),
    ("probes in the middle of operations", 50_000),
    // Every kind of attachment into every other.
    ("nothing -> blocked hitless", 100),
    ("nothing -> identity hitless", 100),
    ("nothing -> stage 1 hitless", 300),
    ("nothing -> stage 2 hitless", 300),
    ("blocked -> nothing", 50),
    ("blocked -> blocked hitless", 100),
    ("blocked -> identity hitless", 50),
    ("blocked -> stage 1 hitless", 100),
    ("blocked -> stage 2 hitless", 100),
    ("identity -> nothing", 50),
    ("identity -> blocked hitless", 50),
    ("identity -> identity hitless", 100),
    ("identity -> stage 1 hitless", 100),
    ("identity -> stage 2 hitless", 100),
    ("stage 1 -> nothing", 100),
    ("stage 1 -> blocked hitless", 100),
    ("stage 1 -> identity hitless", 100),
    ("stage 1 -> stage 1 hitless", 2000),
    ("stage 1 -> stage 2 disruptive", 1000),
    ("stage 1 -> shared stage 1 hitless", 400),
    ("stage 2 -> nothing", 100),
    ("stage 2 -> blocked hitless", 100),
    ("stage 2 -> identity hitless", 100),
    ("stage 2 -> stage 1 disruptive", 1000),
    ("stage 2 -> stage 2 disruptive", 2000),
    ("stage 2 -> stage 2 hitless", 200),
    ("stage 2 -> shared stage 2 disruptive", 400),
    ("shared stage 1 -> shared stage 1 hitless", 100),
    ("shared stage 1 -> stage 2 disruptive", 300),
    ("shared stage 2 -> shared stage 2 disruptive", 100),
    ("shared stage 2 -> stage 1 disruptive", 300),
    // The same as the unit saw it.
    ("model ste: invalid -> stage 1", 2000),
    ("model ste: invalid -> stage 2", 4000),
    ("model ste: stage 1 -> stage 1", 3000),
    ("model ste: stage 1 -> bypass", 150),
    ("model ste: stage 1 -> abort", 150),
    ("model ste: stage 1 -> invalid", 1500),
    ("model ste: stage 2 -> abort", 150),
    ("model ste: stage 2 -> bypass", 150),
    ("model ste: stage 2 -> invalid", 4000),
    ("model ste: bypass -> stage 1", 150),
    ("model ste: bypass -> stage 2", 150),
    ("model ste: abort -> stage 1", 150),
    ("model ste: abort -> stage 2", 150),
    ("model cd: tables -> tables", 5000),
    // Commands.
    ("model command: CFGI_ALL", 200),
    ("model command: CFGI_STE", 20_000),
    ("model command: SYNC", 30_000),
    ("model command: TLBI_EL2_ALL", 40),
    ("model command: TLBI_NH_ASID", 3000),
    ("model command: TLBI_NH_VA", 2000),
    ("model command: TLBI_NSNH_ALL", 200),
    ("model command: TLBI_S12_VMALL", 3000),
    ("model command: TLBI_S2_IPA", 2000),
    ("model invalidation: covers entries", 8000),
    // Errors and faults, as the unit had them and as the driver reported them.
    ("model command error: CERROR_ABT", 150),
    ("model command error: CERROR_ILL", 10),
    ("model error: CMDQ_ERR", 150),
    ("model error: EVENTQ_ABT_ERR", 30),
    ("model event: lost: overflow", 5000),
    ("reported C_BAD_STE", 4000),
    ("reported C_BAD_STREAMID", 800),
    ("reported F_ADDR_SIZE", 500),
    ("reported F_PERMISSION", 1500),
    ("reported F_TRANSLATION", 6000),
    ("reported MSI_EVENTQ_ABT_ERR", 2),
    ("reported overflow", 800),
    ("reported queue error", 150),
    // What the unit used of its caches.
    ("model lookup: stale", 2000),
    ("model oracle: torn entry considered", 20_000),
];

/// The buckets that were reached too rarely.
pub(crate) fn below(counts: &BTreeMap<String, u64>) -> Vec<String> {
    let reached = |name: &str| counts.get(name).copied().unwrap_or(0);
    MINIMA
        .iter()
        .filter(|(name, least)| reached(name) < *least)
        .map(|(name, least)| format!("{name}: {} of at least {least}", reached(name)))
        .collect()
}
