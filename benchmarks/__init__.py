"""What wds costs, beside a conventional build and beside what the machine allows."""
