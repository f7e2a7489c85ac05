//! Faults: the recording registers, the fault event, and what the codes mean.

use crate::InterruptError;
use crate::features::Features;
use crate::recovery;
use crate::spec::faults::FaultCode;
use crate::spec::registers::{
    EventControl, FAULT_RECORD_BYTES, FEADDR, FECTL, FEDATA, FEUADDR, FSTS, FaultInfo, FaultSource,
    FaultStatus, PEADDR, PECTL, PEDATA, PEUADDR,
};
use crate::unit::Inner;
use core::sync::atomic::Ordering;
use portcullis_hal::wait::Register;
use portcullis_hal::{Access, EndpointId, Hal, Iova, Mmio, MsiMessage, Pasid};
use portcullis_iommu::{FaultReason, FaultRecord, Stage, Stages, UnitEvent};

/// How often one call reads the recording registers over before it drops what is left.
const ROUNDS: usize = 64;

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    /// The quarters of a fault recording register that are read and written: low word, high word, highest half-word.
    fn record_registers(&self, index: usize) -> [Register; 3] {
        let offset = usize::from(self.features.cap.fro()) * 16 + index * FAULT_RECORD_BYTES;
        [0, 8, 12].map(|part| Register { name: "FRCD_REG", offset: offset + part })
    }

    /// Takes the fault out of a recording register.
    fn take_fault(&self, index: usize) -> Option<[u64; 2]> {
        let [low, high, highest] = self.record_registers(index);
        let source = self.registers.read64(high);
        if !FaultSource::from_bits(source).f() {
            // The other fields keep the values of an older fault.
            return None;
        }
        let info = self.registers.read64(low);
        // F is written with one to clear; it is the top bit of the register.
        self.registers.write32(highest, 1 << 31);
        Some([info, source])
    }

    /// Reads all faults, and sets the queue going if it stopped. Never waits for the hardware.
    ///
    /// A condition is an event only if no other is pending when it arises (11.4.7.2, IP), whatever the others are.
    /// So a call ends only when it has seen none: then the next one is an event, and whatever arose before is either
    /// taken already or makes an event of its own. In a storm that does not let it come to that, the rest is dropped.
    pub(crate) fn drain_faults(&self, report: &mut dyn FnMut(UnitEvent)) {
        self.hal().critical(|| {
            let _draining = self.draining.lock();
            for _ in 0..ROUNDS {
                let Some(status) = self.pending_conditions() else { return };
                if recovery::is_error(status) {
                    report(UnitEvent::QueueError);
                    // Its submitter would do it too, but perhaps after a fault that is no event because of it.
                    self.queue.recover(&self.registers);
                }
                if status.ppf() {
                    self.take_faults(status, report);
                }
                if status.pfo() {
                    self.clear_overflow();
                    self.report_overflow(report);
                }
            }
            if self.pending_conditions().is_some() {
                self.report_overflow(report);
                self.discard_faults();
            }
        });
    }

    /// The fault status, if it holds a condition that keeps others from being events.
    fn pending_conditions(&self) -> Option<FaultStatus> {
        let status = FaultStatus::from_bits(self.registers.read32(FSTS));
        (status.ppf() || status.pfo() || recovery::is_error(status)).then_some(status)
    }

    fn take_faults(&self, status: FaultStatus, report: &mut dyn FnMut(UnitEvent)) {
        let records = self.features.fault_records();
        // The registers are a ring that begins at FRI.
        for step in 0..records {
            let index = (usize::from(status.fri()) + step) % records;
            if let Some(raw) = self.take_fault(index) {
                self.counters.faults.fetch_add(1, Ordering::Relaxed);
                report(UnitEvent::Fault(decode(&self.features, raw)));
            }
        }
    }

    /// Lets hardware record faults again. As long as it does not, the recording registers stay empty once they are.
    fn clear_overflow(&self) {
        self.registers.write32(FSTS, FaultStatus::new().with_pfo(true).into_bits());
    }

    fn report_overflow(&self, report: &mut dyn FnMut(UnitEvent)) {
        self.counters.overflows.fetch_add(1, Ordering::Relaxed);
        report(UnitEvent::Overflow);
    }

    /// Drops what the recording registers hold, until no condition is pending that keeps others from being events.
    pub(crate) fn discard_faults(&self) {
        for _ in 0..ROUNDS {
            let Some(status) = self.pending_conditions() else { return };
            if recovery::is_error(status) {
                self.queue.recover(&self.registers);
            }
            for index in 0..self.features.fault_records() {
                let _ = self.take_fault(index);
            }
            if status.pfo() {
                self.clear_overflow();
            }
        }
    }

    /// Programs and unmasks the fault event, and then the page request event.
    pub(crate) fn enable_events(&self, message: MsiMessage) -> Result<(), InterruptError> {
        self.enable_event([FECTL, FEDATA, FEADDR, FEUADDR], message)?;
        match self.page_requests {
            Some(_) => self.enable_event([PECTL, PEDATA, PEADDR, PEUADDR], message),
            None => Ok(()),
        }
    }

    /// Programs and unmasks an event, given its registers.
    fn enable_event(
        &self,
        [control, data, low, high]: [Register; 4],
        message: MsiMessage,
    ) -> Result<(), InterruptError> {
        let address = message.address.get();
        self.registers.write32(control, EventControl::new().with_im(true).into_bits());
        let upper = (address >> 32) as u32;
        for (register, wanted) in [(data, message.data), (low, address as u32), (high, upper)] {
            self.registers.write32(register, wanted);
            let found = self.registers.read32(register);
            if found != wanted {
                let register = register.name;
                return Err(InterruptError::Message { register, wanted, found });
            }
        }
        self.registers.write32(control, EventControl::new().into_bits());
        // The write is posted; reading it back makes it arrive.
        self.registers.read32(control);
        Ok(())
    }

    /// Whether the queue stopped at an error, for the dump of registers.
    pub(crate) fn has_queue_error(&self) -> bool {
        recovery::has_error(&self.registers)
    }
}

/// A fault record in the terms of all back ends.
fn decode(features: &Features, [low, high]: [u64; 2]) -> FaultRecord {
    let (info, source) = (FaultInfo::from_bits(low), FaultSource::from_bits(high));
    let code = FaultCode(source.fr());
    let interrupt = FaultCode::INTERRUPT.contains(&code);
    let access = match (source.t1(), source.t2()) {
        (false, false) => Some(Access::WRITE),
        (true, false) if source.pp() && source.execute() => Some(Access::READ | Access::EXECUTE),
        (true, false) => Some(Access::READ),
        // An atomic operation.
        (true, true) => Some(Access::READ | Access::WRITE),
        // A page request.
        (false, true) => None,
    };
    FaultRecord {
        endpoint: EndpointId::new(u32::from(source.sid())),
        pasid: source.pp().then(|| Pasid::new(source.pv()).ok()).flatten(),
        address: (!interrupt).then(|| Iova::new(info.fi() << 12)),
        access: access.filter(|_| !interrupt),
        stage: stage(features, code),
        reason: reason(code),
        code: u16::from(code.0),
        name: code.name(),
        raw: [low, high, 0, 0],
    }
}

/// The stage that refused, where the code tells it or only one is possible.
fn stage(features: &Features, code: FaultCode) -> Option<Stage> {
    use FaultCode as C;
    match code {
        C::NO_WRITE | C::NO_READ | C::TABLE_ACCESS | C::TABLE_RESERVED => Some(Stage::Stage2),
        C(0x70..=0x77)
        | C::SM_NOT_CANONICAL
        | C::SM_USER
        | C::SM_FIRST_UPDATE_NO_SNOOP
        | C::SM_FIRST_UPDATE => Some(Stage::Stage1),
        C(0x78..=0x7d) | C::SM_ADDRESS_BEYOND_WIDTH => Some(Stage::Stage2),
        C::SM_NO_EXECUTE | C::SM_NO_WRITE | C::SM_NO_READ => match features.stages() {
            Stages::STAGE_1 => Some(Stage::Stage1),
            Stages::STAGE_2 => Some(Stage::Stage2),
            _ => None,
        },
        _ => None,
    }
}

/// The reason in the terms of all back ends.
fn reason(code: FaultCode) -> FaultReason {
    use FaultCode as C;
    match code {
        C::ROOT_NOT_PRESENT | C::CONTEXT_NOT_PRESENT | C::SM_ROOT_NOT_PRESENT | C::SM_CONTEXT_NOT_PRESENT => {
            FaultReason::Unattached
        }
        C::CONTEXT_INVALID
        | C::ROOT_RESERVED
        | C::CONTEXT_RESERVED
        | C::TABLE_RESERVED
        | C::SM_ROOT_ADDRESS
        | C::SM_ROOT_RESERVED
        | C::SM_CONTEXT_RESERVED
        | C::SM_CONTEXT_INVALID
        | C::SM_DIRECTORY_RESERVED
        | C::SM_PASID_RESERVED
        | C::SM_PASID_INVALID
        | C::SM_FIRST_RESERVED
        | C::SM_SECOND_RESERVED => FaultReason::BadEntry,
        C::SM_DIRECTORY_NOT_PRESENT | C::SM_PASID_NOT_PRESENT | C::SM_PASID_BEYOND | C::SM_NO_PASID => {
            FaultReason::Unattached
        }
        C::SM_FIRST_NOT_PRESENT => FaultReason::NotMapped,
        // In the second stage an entry without permissions is an absent one: hardware does not tell them apart.
        C::NO_WRITE | C::NO_READ | C::SM_SECOND_PERMISSION => FaultReason::NotAllowed,
        C::SM_USER
        | C::SM_NO_EXECUTE
        | C::SM_NO_WRITE
        | C::SM_NO_READ
        | C::SM_NESTED_ROOT_READ
        | C::SM_NESTED_READ
        | C::SM_NESTED_WRITE
        | C::SM_NO_EXECUTE_REQUESTS
        | C::SM_NO_PRIVILEGED_REQUESTS => FaultReason::Permission,
        C::ADDRESS_BEYOND_WIDTH
        | C::SM_NOT_CANONICAL
        | C::SM_ADDRESS_BEYOND_UNIT
        | C::SM_ADDRESS_BEYOND_WIDTH
        | C::SM_NESTED_BEYOND => FaultReason::OutOfRange,
        C::OUTPUT_INTERRUPT | C::SM_OUTPUT_INTERRUPT => FaultReason::BadOutput,
        C::TABLE_ACCESS
        | C::ROOT_ACCESS
        | C::CONTEXT_ACCESS
        | C::SM_ROOT_ACCESS
        | C::SM_CONTEXT_ACCESS
        | C::SM_DIRECTORY_ACCESS
        | C::SM_PASID_ACCESS
        | C::SM_FIRST_ACCESS
        | C::SM_FIRST_ROOT_ACCESS
        | C::SM_SECOND_ACCESS
        | C::SM_SECOND_ROOT_ACCESS => FaultReason::TableUnreadable,
        C::SM_SECOND_UPDATE_NO_SNOOP
        | C::SM_SECOND_UPDATE
        | C::SM_FIRST_UPDATE
        | C::SM_FIRST_UPDATE_NO_SNOOP => FaultReason::AccessFlag,
        _ => FaultReason::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FaultReason as R;

    /// QEMU 11.1, first stage only.
    fn features() -> Features {
        Features::decode(0x81d2_008c_222f_0606, 0x0000_8d9a_20f0_0f4e, 48).unwrap()
    }

    fn decoded(code: u8) -> FaultRecord {
        decode(&features(), [0x5_6000, 1 << 63 | u64::from(code) << 32 | 0x20])
    }

    #[test]
    fn every_code_of_the_manual_has_its_reason() {
        let table: &[(R, &[u8])] = &[
            (R::Unattached, &[0x01, 0x02, 0x39, 0x41, 0x45, 0x46, 0x51, 0x59]),
            (R::BadEntry, &[0x03, 0x0a, 0x0b, 0x0c, 0x30, 0x3a, 0x42, 0x43, 0x52, 0x5a, 0x5b, 0x72, 0x7a]),
            (R::NotMapped, &[0x71]),
            (R::NotAllowed, &[0x05, 0x06, 0x79]),
            (R::Permission, &[0x5c, 0x5d, 0x75, 0x76, 0x77, 0x81, 0x82, 0x85, 0x86]),
            (R::OutOfRange, &[0x04, 0x74, 0x80, 0x83, 0x84]),
            (R::BadOutput, &[0x0e, 0x87]),
            (R::TableUnreadable, &[0x07, 0x08, 0x09, 0x38, 0x40, 0x50, 0x58, 0x70, 0x73, 0x78, 0x7b]),
            (R::AccessFlag, &[0x7c, 0x7d, 0x90, 0x91]),
            (R::Other, &[0x0d, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x44, 0x47, 0x48]),
        ];
        let mut known = 0;
        for (reason, codes) in table {
            for &code in *codes {
                let record = decoded(code);
                assert_eq!((record.reason, record.code), (*reason, u16::from(code)), "{code:#x}");
                assert_ne!(record.name, "reserved", "{code:#x}");
                known += 1;
            }
        }
        assert_eq!(known, FaultCode::ALL.len());
        for code in [0x00, 0x0f, 0x33, 0x60, 0x88, 0xff] {
            assert_eq!((decoded(code).reason, decoded(code).name), (R::Other, "reserved"));
        }
    }

    #[test]
    fn the_type_bits_tell_the_access() {
        let access = |high: u64| decode(&features(), [0, 1 << 63 | 0x71 << 32 | high]).access;
        assert_eq!(access(0), Some(Access::WRITE));
        assert_eq!(access(1 << 62), Some(Access::READ));
        assert_eq!(access(1 << 62 | 1 << 28), Some(Access::READ | Access::WRITE));
        assert_eq!(access(1 << 28), None);
        // EXE counts only with a PASID.
        assert_eq!(access(1 << 62 | 1 << 30), Some(Access::READ));
        assert_eq!(access(1 << 62 | 1 << 30 | 1 << 31), Some(Access::READ | Access::EXECUTE));
    }

    #[test]
    fn the_pasid_counts_only_where_it_is_said_to_be_present() {
        let pasid = |high: u64| decode(&features(), [0, 0xabcde << 40 | high]).pasid;
        assert_eq!(pasid(0), None);
        assert_eq!(pasid(1 << 31), Pasid::new(0xabcde).ok());
    }

    #[test]
    fn an_interrupt_request_has_no_address_and_no_access() {
        for code in 0x20..=0x2f {
            let record = decoded(code);
            assert_eq!((record.address, record.access, record.stage), (None, None, None), "{code:#x}");
            assert_eq!(record.reason, R::Other, "{code:#x}");
        }
        assert_eq!(decoded(0x71).address, Some(Iova::new(0x5_6000)));
    }

    #[test]
    fn the_stage_is_told_where_the_code_or_the_unit_says_it() {
        assert_eq!(decoded(0x85).stage, Some(Stage::Stage1));
        assert_eq!(decoded(0x71).stage, Some(Stage::Stage1));
        for code in [0x05, 0x78, 0x7c, 0x7d] {
            assert_eq!(decoded(code).stage, Some(Stage::Stage2), "{code:#x}");
        }
        assert_eq!(decoded(0x02).stage, None);
        let both = Features::decode(0x81d2_008c_222f_0606, 0x0000_cd9a_20f0_0f4e, 48).unwrap();
        assert_eq!(decode(&both, [0, 0x85 << 32]).stage, None);
    }
}
