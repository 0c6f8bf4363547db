"""An asyncio program: an entity on its own loop, a process beside it, and many calls at once."""
import asyncio
import time

import pyzmp


class Counter(pyzmp.Node):
    kind = "entity"  # lives on the loop that starts it
    count = 0

    @pyzmp.service
    async def visit(self) -> int:
        self.count += 1
        return self.count


class Primes(pyzmp.Node):
    @pyzmp.service
    def is_prime(self, n: int) -> bool:
        return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


async def main() -> None:
    async with Counter("counter"), Primes("primes"):
        began = time.perf_counter()
        answers = await asyncio.gather(*(Primes.is_prime.acall(n) for n in range(1000)))
        print(f"{sum(answers)} primes below 1000, in {(time.perf_counter() - began) * 1000:.0f} ms")

        async for prime in Primes.is_prime.map(range(10)):  # in order, while the loop does other things
            await Counter.visit.acall()
            print("prime" if prime else "-", end=" ")
        print(f"\n{await Counter.visit.acall() - 1} visits")


if __name__ == "__main__":
    asyncio.run(main())
