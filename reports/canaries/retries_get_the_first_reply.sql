-- A retry got another answer than the first attempt.
UPDATE attempts SET reply_hash = md5('another answer') WHERE replayed;
