use super::machine::cpu_name;
use super::*;
use proptest::prelude::*;

#[test]
fn report_json_has_exactly_the_documented_fields() {
    let mut report = Report::new("mdevd perf net");
    report.results.push(Measurement::new("to/64/rate", "Mpps", [3.0, 1.0, 2.0]));
    let mut bytes = Vec::new();
    report.write(&mut bytes).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), ["command", "commit", "machine", "results", "version"]);
    assert_eq!(keys(&json["machine"]), ["cacheline_round_trip_ns", "cores", "cpu", "kernel"]);
    assert_eq!(keys(&json["results"][0]), ["max", "median", "min", "name", "samples", "status", "unit"]);
    assert_eq!(json["results"][0]["status"], "ok");
    assert_eq!(json["results"][0]["median"], 2.0);
    assert_eq!(bytes.last(), Some(&b'\n'));
    let back: Report = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(back, report);
}

#[test]
fn report_with_unknown_field_is_refused() {
    let text = r#"{"command":"c","version":"v","commit":"x","machine":{"cpu":"c","kernel":"k","cores":1,
        "cacheline_round_trip_ns":null},"results":[],"surprise":1}"#;
    assert!(serde_json::from_str::<Report>(text).is_err());
}

#[test]
fn measurement_without_finite_samples_is_failed_and_zero() {
    let empty = Measurement::new("x", "ns", [f64::NAN, f64::INFINITY]);
    assert_eq!((empty.median, empty.min, empty.max, empty.status), (0.0, 0.0, 0.0, Status::Failed));
    let skipped = Measurement::without_value("x", "ns", Status::Skipped);
    assert_eq!(skipped.status, Status::Skipped);
}

#[test]
fn one_failed_result_fails_the_report() {
    let mut report = Report::new("c");
    report.results.push(Measurement::new("a", "ns", [1.0]));
    report.results.push(Measurement::without_value("b", "ns", Status::Skipped));
    assert!(!report.failed());
    report.results.push(Measurement::new("d", "ns", [1.0]).with_status(Status::Failed));
    assert!(report.failed());
    assert!(report.result("b").is_some() && report.result("e").is_none());
}

#[test]
fn machine_of_this_process_has_a_core_and_a_kernel() {
    let machine = Machine::this();
    assert!(machine.cores >= 1);
    assert!(!machine.kernel.is_empty() && !machine.cpu.is_empty());
}

#[test]
fn cpu_name_is_read_from_cpuinfo_text() {
    assert_eq!(cpu_name("vendor_id\t: A\nmodel name\t: Some CPU @ 3 GHz\n"), Some("Some CPU @ 3 GHz"));
    assert_eq!(cpu_name("model name\t:\n"), None);
    assert_eq!(cpu_name("CPU implementer : 0x41\n"), None);
}

proptest! {
    #[test]
    fn median_lies_between_the_extremes_and_splits_the_samples(values in prop::collection::vec(-1e6f64..1e6, 1..50)) {
        let result = Measurement::new("x", "ns", values.iter().copied());
        prop_assert!(result.min <= result.median && result.median <= result.max);
        let below = values.iter().filter(|value| **value < result.median).count();
        let above = values.iter().filter(|value| **value > result.median).count();
        prop_assert!(below <= values.len() / 2 && above <= values.len() / 2);
    }
}
