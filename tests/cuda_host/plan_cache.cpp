// Checks csrc/plan_cache.h with plans that count themselves; the argument names the check. See
// tests/test_plan_cache.py.
#include "plan_cache.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <vector>

namespace {

using Key = std::tuple<int, int, int>;  // transform, height, planes

struct Plan {
  static inline std::atomic<int> made = 0, alive = 0;
  Key key;
  explicit Plan(const Key& key) : key(key) { ++made, ++alive; }
  ~Plan() { --alive; }
};

using Cache = affnet::PlanCache<Key, Plan>;

std::shared_ptr<Plan> make(const Key& key) { return std::make_shared<Plan>(key); }
std::shared_ptr<Plan> get(Cache& cache, int height, bool pin = false) { return cache.get({0, height, 1}, make, pin); }

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "expected %s\n", what);
  std::exit(1);
}

void hits_and_misses() {
  Cache cache(8);
  const auto first = get(cache, 7);
  expect(get(cache, 7) == first, "the same plan for the same key");
  expect(cache.info().hits == 1 && cache.info().misses == 1, "one hit and one miss");
  for (const Key& key : {Key{1, 7, 1}, Key{0, 8, 1}, Key{0, 7, 2}}) {
    const auto plan = cache.get(key, make);
    expect(plan != first && plan->key == key, "a plan of its own for a key that differs in one part");
  }
}

void the_least_recently_used_goes() {
  Cache cache(3);
  for (int height : {1, 2, 3, 1, 4}) get(cache, height);
  expect(cache.info().size == 3 && cache.info().evictions == 1, "one eviction");
  const int made = Plan::made;
  for (int height : {1, 3, 4}) get(cache, height);
  expect(Plan::made == made, "1, 3 and 4 to be there still");
  get(cache, 2);
  expect(Plan::made == made + 1, "2 to be gone");
}

void five_hundred_shapes() {
  Cache cache(16);
  for (int height = 0; height < 500; ++height) {
    get(cache, height);
    expect(cache.info().size <= 16 && Plan::alive <= 16, "no more than 16 plans at any time");
  }
  expect(cache.info().evictions == 484, "484 evictions");
}

void an_evicted_plan_lives_while_held() {
  Cache cache(1);
  const auto held = get(cache, 1);
  get(cache, 2);
  expect(held->key == Key{0, 1, 1} && Plan::alive == 2, "the held plan alive");
}

void a_pinned_plan_stays() {
  Cache cache(2);
  get(cache, 1);
  get(cache, 1, true);
  for (int height = 2; height < 20; ++height) get(cache, height);
  const int made = Plan::made;
  get(cache, 1);
  expect(Plan::made == made, "the pinned plan in the cache");
  cache.clear();
  expect(cache.info().size == 1 && cache.info().pinned == 1 && cache.info().capacity == 2, "only the pinned plan");
  for (int height : {1, 2, 3}) get(cache, height, true);
  expect(cache.info().size == 3, "pinned plans beyond the capacity");
}

void the_capacity_can_change() {
  Cache cache(8);
  for (int height = 0; height < 8; ++height) get(cache, height);
  cache.set_capacity(2);
  expect(cache.info().size == 2 && Plan::alive == 2, "two plans");
  cache.set_capacity(0);
  const auto plan = get(cache, 1);
  expect(plan->key == Key{0, 1, 1} && cache.info().size == 0, "a plan that is not kept");
}

void a_failed_plan_changes_nothing() {
  Cache cache(1);
  get(cache, 1);
  try {
    cache.get({0, 2, 1}, [](const Key&) -> std::shared_ptr<Plan> { throw std::runtime_error("no memory"); });
    expect(false, "the exception");
  } catch (const std::runtime_error&) {
  }
  const int made = Plan::made;
  get(cache, 1);
  expect(Plan::made == made && cache.info().misses == 1 && cache.info().size == 1, "the cache as it was");
  get(cache, 2);
  expect(Plan::made == made + 1, "the next try to succeed");
}

void threads() {
  Cache cache(8);
  std::vector<std::thread> workers;
  for (int worker = 0; worker < 8; ++worker) {
    workers.emplace_back([&, worker] {
      for (int i = 0; i < 20000; ++i) {
        const int height = (i * 7 + worker * 3) % 12;
        expect(get(cache, height)->key == Key{0, height, 1}, "the plan asked for, from any thread");
        if (i % 1000 == 0) cache.clear();
        if (i % 1500 == 0) cache.set_capacity(4 + worker);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  const affnet::PlanCacheInfo info = cache.info();
  expect(info.hits + info.misses == 8 * 20000, "every call counted");
  expect(info.misses == Plan::made && Plan::alive == static_cast<int>(info.size), "no plan made twice or leaked");
}

}  // namespace

int main(int, char** argv) {
  const std::pair<const char*, void (*)()> checks[] = {
      {"hits_and_misses", hits_and_misses},
      {"the_least_recently_used_goes", the_least_recently_used_goes},
      {"five_hundred_shapes", five_hundred_shapes},
      {"an_evicted_plan_lives_while_held", an_evicted_plan_lives_while_held},
      {"a_pinned_plan_stays", a_pinned_plan_stays},
      {"the_capacity_can_change", the_capacity_can_change},
      {"a_failed_plan_changes_nothing", a_failed_plan_changes_nothing},
      {"threads", threads},
  };
  for (const auto& [name, check] : checks) {
    if (std::strcmp(name, argv[1]) == 0) return check(), 0;
  }
  return 2;
}
