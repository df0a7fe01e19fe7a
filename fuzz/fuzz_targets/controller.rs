#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdevd::device::nvme::fuzz_controller(script));
