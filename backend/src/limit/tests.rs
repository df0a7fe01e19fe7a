use super::*;

#[test]
fn lines_beyond_the_limit_are_counted_and_told_with_the_next_one() {
    let limit = LogLimit::new(2, Duration::from_secs(1));
    let start = Instant::now();
    assert_eq!(limit.permit_at(start), Some(LeftOut(0)));
    assert_eq!(limit.permit_at(start), Some(LeftOut(0)));
    assert_eq!(limit.permit_at(start), None);
    assert_eq!(limit.permit_at(start + Duration::from_millis(999)), None);
    let next = limit.permit_at(start + Duration::from_secs(1)).unwrap();
    assert_eq!(next.to_string(), " (2 more like this)");
    assert_eq!(limit.permit_at(start + Duration::from_secs(1)).unwrap().to_string(), "");
}
