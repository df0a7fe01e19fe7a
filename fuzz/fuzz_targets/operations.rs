#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdev_pin::fuzzing::fuzz_operations(script));
