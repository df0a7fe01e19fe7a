use super::*;

#[test]
fn timestamps_are_those_of_the_calendar() {
    assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000Z");
    assert_eq!(timestamp(951_782_400, 5), "2000-02-29T00:00:00.005Z");
    assert_eq!(timestamp(1_709_251_199, 999), "2024-02-29T23:59:59.999Z");
    assert_eq!(timestamp(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
}

#[test]
fn each_day_of_four_centuries_follows_the_one_before() {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut month, mut day) = (1970, 1, 1);
    for count in 0..146_097 {
        assert_eq!(date(count), (year, month, day));
        let length = match month {
            2 => 28 + u64::from(leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        day += 1;
        if day > length {
            (month, day) = (month + 1, 1);
        }
        if month > 12 {
            (year, month) = (year + 1, 1);
        }
    }
}
