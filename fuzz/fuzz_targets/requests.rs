#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdevd::device::blk::fuzzing::fuzz_requests(script));
