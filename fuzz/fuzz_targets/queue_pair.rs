#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdevd::device::net::fuzzing::fuzz_queue_pair(script));
