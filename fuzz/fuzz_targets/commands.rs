#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdevd::device::nvme::fuzzing::fuzz_commands(script));
