#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdev_protocol::fuzzing::fuzz_vfio_user_client(script));
