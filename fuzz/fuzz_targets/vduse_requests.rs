#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdev_protocol::fuzzing::fuzz_vduse_requests(script));
