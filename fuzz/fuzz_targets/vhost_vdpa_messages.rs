#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| mdev_protocol::fuzzing::fuzz_vhost_vdpa_messages(script));
